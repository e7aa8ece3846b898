/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The code that vmclgi's VM runs, in protected mode of 16 bits at 0x1000. 0x2000 counts the rounds.
 * Port 0x20: CLGI was carried out. Port 0x21: it was #UD, whose handler is clgi_undefined.
 */
	.section .rodata
	.code16
	.globl clgi_code, clgi_undefined, clgi_code_end
clgi_code:
	incl	0x2000
	clgi
	stgi
	outb	%al, $0x20
	jmp	clgi_code
clgi_undefined:
	addw	$6, %sp
	outb	%al, $0x21
	jmp	clgi_code
clgi_code_end:

	.section .note.GNU-stack, "", @progbits
