// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/kvm: opens the default core.  The first core that is published is the
 * default; then the administrator chooses, by writing a core's name to
 * /sys/module/kvm_thin/parameters/cores.  When the default core goes, the
 * one that was loaded last takes its place.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>

#include "thin.h"

static struct kvm_thin_core *default_core;

static void set_default(struct kvm_thin_core *core)
{
	default_core = core;
	pr_info("/dev/kvm is core %s\n", core ? core->name : "(none)");
}

void kvm_thin_publish(struct kvm_thin_core *core, const struct file_operations *fops)
{
	guard(mutex)(&thin_lock);
	core->fops = fops;
	if (!default_core)
		set_default(core);
}
EXPORT_SYMBOL_GPL(kvm_thin_publish);

void kvm_thin_unpublish(struct kvm_thin_core *core)
{
	struct kvm_thin_core *other, *last = NULL;

	guard(mutex)(&thin_lock);
	core->fops = NULL;
	if (default_core != core)
		return;
	for_each_core(other)
		if (other->fops)
			last = other;
	set_default(last);
}
EXPORT_SYMBOL_GPL(kvm_thin_unpublish);

static int device_open(struct inode *inode, struct file *file)
{
	const struct file_operations *fops = NULL;

	scoped_guard(mutex, &thin_lock)
		if (default_core)
			fops = fops_get(default_core->fops);
	if (!fops)
		return -ENODEV;
	replace_fops(file, fops);
	return fops->open ? fops->open(inode, file) : 0;
}

static const struct file_operations device_fops = { .owner = THIS_MODULE, .open = device_open };

struct miscdevice thin_device = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &device_fops,
	/* udev gives it to the group kvm, as the distribution wants it */
	.mode = 0660,
};

static int cores_set(const char *value, const struct kernel_param *param)
{
	struct kvm_thin_core *core;

	guard(mutex)(&thin_lock);
	for_each_core(core)
		if (core->fops && sysfs_streq(value, core->name)) {
			set_default(core);
			return 0;
		}
	return -ENODEV;
}

static int cores_get(char *buffer, const struct kernel_param *param)
{
	struct kvm_thin_core *core;
	int n = 0;

	guard(mutex)(&thin_lock);
	for_each_core(core)
		n += sysfs_emit_at(buffer, n, "%s vms=%d enabled=%d default=%d\n",
				   core->name, atomic_read(&core->vms),
				   core->enabled, core == default_core);
	return n;
}

static const struct kernel_param_ops cores_ops = { .set = cores_set, .get = cores_get };

module_param_cb(cores, &cores_ops, NULL, 0644);
MODULE_PARM_DESC(cores, "what cores there are; write a name to make it the default");
