/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Firmware whose guest executes CLGI all the time, with EFER.SVME clear, in protected mode of 16 bits (in real mode it is #UD
 * by another rule). 64 KiB at the end of the 32-bit address space, seen at 0xf0000 too, where all but the last 16 bytes run.
 * It counts in RAM, u64 each: rounds at 0x8000, CLGI carried out at 0x8008, #UD at 0x8010.
 */
	.code16
	.text
	.globl _start
_start:
	cli
	lgdtl %cs:table_of_segments
	lidtl %cs:table_of_interrupts
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmpw $8, $protected
protected:
	movw $16, %ax
	movw %ax, %ds
	movw %ax, %ss
	movw $0x7c00, %sp
round:
	addl $1, 0x8000
	adcl $0, 0x8004
	clgi
	stgi
	addl $1, 0x8008
	adcl $0, 0x800c
	jmp round
undefined:
	addw $6, %sp
	addl $1, 0x8010
	adcl $0, 0x8014
	jmp round

table_of_segments:
	.word segments_end - segments - 1
	.long 0xf0000 + segments
table_of_interrupts:
	.word interrupts_end - interrupts - 1
	.long 0xf0000 + interrupts
segments:
	.quad 0
	.quad 0x00009b0f0000ffff /* 0x08: code at 0xf0000, accessed already, because ROM cannot note it */
	.quad 0x000093000000ffff /* 0x10: data at 0, the same */
segments_end:
interrupts:
	.fill 6, 8, 0
	.word undefined, 8, 0x8600, 0 /* 6, #UD: a gate of 16 bits */
interrupts_end:

	.org 0xfff0
	ljmpw $0xf000, $_start
	.org 0x10000
