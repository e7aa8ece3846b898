/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The code that vmload's VMs run, in real mode at 0x1000. 0x2000 holds what TSC_AUX has to be, 0x2004 counts.
 * Port 0x10: all is well, every 2048 rounds. Port 0x11: TSC_AUX as it was seen, which is not what it has to be.
 */
	.section .rodata
	.code16
	.globl guest_code, guest_code_end
guest_code:
	movw	$2048, %si
round:
	rdtscp
	cmpl	0x2000, %ecx
	jne	wrong
	incl	0x2004
	decw	%si
	jnz	round
	outb	%al, $0x10
	jmp	guest_code
wrong:
	movl	%ecx, %eax
	outl	%eax, $0x11
	jmp	guest_code
guest_code_end:

	.section .note.GNU-stack, "", @progbits
