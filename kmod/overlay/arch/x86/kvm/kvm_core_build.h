/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Included before all else in each file of a core (-include).
 *
 * Names that exist once in a kernel are made of the build's.  KVM_CORE_BUILD is
 * given on the command line, a C identifier, and so is KVM_CORE_SOURCE, the
 * release of Linux.
 */
#ifndef KVM_CORE_BUILD_H
#define KVM_CORE_BUILD_H

#include <linux/stringify.h>

#define KVM_CORE_NAME		__stringify(KVM_CORE_BUILD)
/* of a node, a folder in debugfs, a cache, a workqueue */
#define KVM_CORE_NAMED(x)	x "-" KVM_CORE_NAME

#define __KVM_CORE_TRACE(system, build)	system ## _ ## build
#define _KVM_CORE_TRACE(system, build)	__KVM_CORE_TRACE(system, build)
#define KVM_CORE_TRACE(system)		_KVM_CORE_TRACE(system, KVM_CORE_BUILD)

/*
 * A core exports nothing: it is all of KVM.  (-D__DISABLE_EXPORTS would do it
 * too, but on x86 that turns the return thunks of assembly code off.)
 */
#ifndef __ASSEMBLY__
#include <linux/export.h>
#undef EXPORT_SYMBOL
#undef EXPORT_SYMBOL_GPL
#undef EXPORT_SYMBOL_NS
#undef EXPORT_SYMBOL_NS_GPL
#define EXPORT_SYMBOL(...)		struct kvm_core_exports_nothing
#define EXPORT_SYMBOL_GPL(...)		struct kvm_core_exports_nothing
#define EXPORT_SYMBOL_NS(...)		struct kvm_core_exports_nothing
#define EXPORT_SYMBOL_NS_GPL(...)	struct kvm_core_exports_nothing
#endif

#endif
