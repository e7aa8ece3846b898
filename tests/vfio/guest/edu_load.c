// SPDX-License-Identifier: GPL-2.0-only
/*
 * Load on QEMU's edu devices in a guest of the passthrough tests: interrupts, one at a time, each of which has to arrive
 * exactly once, and transfers by DMA that have to bring back what was sent.  Results go to the status page (status.h).
 *
 * slots=A,B,...  status slot of each device, in the order of their addresses
 * msi=0,1,...    whether it uses MSI, in the same order
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/random.h>

#include "status.h"

#define EDU_FACTORIAL	0x08
#define EDU_STATUS	0x20
#define EDU_IRQ_STATUS	0x24
#define EDU_IRQ_RAISE	0x60
#define EDU_IRQ_ACK	0x64
#define EDU_DMA_SOURCE	0x80
#define EDU_DMA_TARGET	0x88
#define EDU_DMA_COUNT	0x90
#define EDU_DMA_COMMAND	0x98

#define EDU_STATUS_IRQ		0x80
#define EDU_FACTORIAL_IRQ	0x01
#define EDU_DMA_IRQ		0x100
#define EDU_DMA_START		0x01
#define EDU_DMA_FROM_DEVICE	0x02
#define EDU_DMA_WANT_IRQ	0x04
#define EDU_BUFFER		0x40000
#define EDU_DMA_BITS		28

#define OWN_IRQ		0x10000		/* any bit that the device does not use itself */
#define TRANSFER	2048
/* The host's pauses end long before that, also on a machine with much other work. */
#define ANSWER		(40 * HZ)

static unsigned int slots[STATUS_SLOTS], msi[STATUS_SLOTS];
static int slot_count, msi_count;
static bool taken[STATUS_SLOTS];
module_param_array(slots, uint, &slot_count, 0444);
module_param_array(msi, uint, &msi_count, 0444);

static struct status_page *page;

struct edu {
	void __iomem *registers;
	struct status_slot *slot;
	int place;
	struct task_struct *worker;
	struct completion interrupted;
	u32 causes;
	int irq;
	bool msi;
	u8 *buffer;
	dma_addr_t bus_address;
};

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct edu *edu = data;
	u32 causes = readl(edu->registers + EDU_IRQ_STATUS);

	if (!causes) {
		/* A line can be shared, a message cannot. */
		if (edu->msi)
			edu->slot->extra_interrupts++;
		return edu->msi ? IRQ_HANDLED : IRQ_NONE;
	}
	writel(causes, edu->registers + EDU_IRQ_ACK);
	edu->causes = causes;
	complete(&edu->interrupted);
	return IRQ_HANDLED;
}

/* Wait for the one interrupt that is due.  Another must not be there before the next thing is begun. */
static void edu_await(struct edu *edu, u32 cause, ktime_t began)
{
	u64 us;

	if (!wait_for_completion_timeout(&edu->interrupted, ANSWER)) {
		edu->slot->lost_interrupts++;
		pr_err("edu %d: no interrupt, status %#x\n", edu->irq, readl(edu->registers + EDU_IRQ_STATUS));
		writel(~0u, edu->registers + EDU_IRQ_ACK);
		return;
	}
	if (edu->causes != cause) {
		edu->slot->mismatches++;
		pr_err("edu %d: interrupt for %#x, not %#x\n", edu->irq, edu->causes, cause);
	}
	if (try_wait_for_completion(&edu->interrupted))
		edu->slot->extra_interrupts++;
	us = ktime_us_delta(ktime_get(), began);
	if (us > edu->slot->longest_us)
		edu->slot->longest_us = us;
	edu->slot->ios++;
}

static void edu_own_interrupt(struct edu *edu)
{
	ktime_t began = ktime_get();

	writel(OWN_IRQ, edu->registers + EDU_IRQ_RAISE);
	edu_await(edu, OWN_IRQ, began);
}

static void edu_factorial(struct edu *edu, u32 n)
{
	ktime_t began = ktime_get();
	u32 expected = 1, got, i;

	for (i = 2; i <= n; i++)
		expected *= i;
	writel(EDU_STATUS_IRQ, edu->registers + EDU_STATUS);
	writel(n, edu->registers + EDU_FACTORIAL);
	edu_await(edu, EDU_FACTORIAL_IRQ, began);
	got = readl(edu->registers + EDU_FACTORIAL);
	if (got != expected) {
		edu->slot->mismatches++;
		pr_err("edu %d: %u! is %u, not %u\n", edu->irq, n, expected, got);
	}
}

/* The device takes a tenth of a second for it: the likeliest thing to end while the guest stands still. */
static void edu_transfer(struct edu *edu, u64 from, u64 to, u32 direction)
{
	ktime_t began = ktime_get();

	writeq(from, edu->registers + EDU_DMA_SOURCE);
	writeq(to, edu->registers + EDU_DMA_TARGET);
	writeq(TRANSFER, edu->registers + EDU_DMA_COUNT);
	writeq(EDU_DMA_START | EDU_DMA_WANT_IRQ | direction, edu->registers + EDU_DMA_COMMAND);
	edu_await(edu, EDU_DMA_IRQ, began);
}

static void edu_there_and_back(struct edu *edu)
{
	u8 *sent = edu->buffer, *back = edu->buffer + TRANSFER;

	get_random_bytes(sent, TRANSFER);
	memset(back, 0, TRANSFER);
	edu_transfer(edu, edu->bus_address, EDU_BUFFER, 0);
	edu_transfer(edu, EDU_BUFFER, edu->bus_address + TRANSFER, EDU_DMA_FROM_DEVICE);
	if (memcmp(sent, back, TRANSFER)) {
		edu->slot->mismatches++;
		pr_err("edu %d: sent %*phN, got %*phN\n", edu->irq, 16, sent, 16, back);
	}
}

static int edu_work(void *data)
{
	struct edu *edu = data;
	u32 round;

	for (round = 0; !kthread_should_stop(); round++) {
		edu_own_interrupt(edu);
		edu_factorial(edu, round % 12 + 1);
		edu_there_and_back(edu);
	}
	return 0;
}

static int edu_set_up(struct pci_dev *pci, struct edu *edu)
{
	int error = pcim_enable_device(pci);

	if (!error)
		error = pcim_iomap_regions(pci, BIT(0), "edu");
	if (!error)
		error = dma_set_mask_and_coherent(&pci->dev, DMA_BIT_MASK(EDU_DMA_BITS));
	if (error)
		return error;
	pci_set_master(pci);
	edu->registers = pcim_iomap_table(pci)[0];
	edu->buffer = dmam_alloc_coherent(&pci->dev, 2 * TRANSFER, &edu->bus_address, GFP_KERNEL);
	if (!edu->buffer)
		return -ENOMEM;
	error = pci_alloc_irq_vectors(pci, 1, 1, edu->msi ? PCI_IRQ_MSI : PCI_IRQ_INTX);
	if (error < 0)
		return error;
	edu->irq = pci_irq_vector(pci, 0);
	init_completion(&edu->interrupted);
	return devm_request_irq(&pci->dev, edu->irq, edu_interrupt, edu->msi ? 0 : IRQF_SHARED, "edu", edu);
}

static int edu_probe(struct pci_dev *pci, const struct pci_device_id *id)
{
	struct edu *edu = devm_kzalloc(&pci->dev, sizeof(*edu), GFP_KERNEL);
	int error;

	if (!edu)
		return -ENOMEM;
	while (edu->place < slot_count && taken[edu->place])
		edu->place++;
	if (edu->place >= min(slot_count, msi_count) || slots[edu->place] >= STATUS_SLOTS)
		return -EINVAL;
	edu->slot = &page->slots[slots[edu->place]];
	edu->msi = msi[edu->place];
	error = edu_set_up(pci, edu);
	if (error)
		return error;
	edu->worker = kthread_run(edu_work, edu, "edu%d", edu->irq);
	if (IS_ERR(edu->worker))
		return PTR_ERR(edu->worker);
	taken[edu->place] = true;
	pci_set_drvdata(pci, edu);
	return 0;
}

/* It is unplugged, between two rounds; plugged in again it has its slot back. */
static void edu_remove(struct pci_dev *pci)
{
	struct edu *edu = pci_get_drvdata(pci);

	kthread_stop(edu->worker);
	taken[edu->place] = false;
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};

static struct pci_driver edu_driver = {
	.name = "edu_load",
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
};

/* Never unloaded: a guest runs it until it is switched off. */
static int __init edu_load_init(void)
{
	page = memremap(STATUS_PAGE, PAGE_SIZE, MEMREMAP_WB);
	return page ? pci_register_driver(&edu_driver) : -ENOMEM;
}
module_init(edu_load_init);

MODULE_DESCRIPTION("Load on edu devices");
MODULE_LICENSE("GPL");
