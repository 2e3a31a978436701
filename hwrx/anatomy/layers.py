"""Which layer of the journey a function belongs to: one table, by names. What it does not know is its own row.

A layer's words are regular expressions for whole names; the first layer with one that fits counts. What is not of the
kernel's image stands behind an @: `veth_xmit@[veth]`, `__send@libc.so.6`. What the compiler made of a function, or
split off (`.constprop.0`, `.part.0`), is its own.
"""

from __future__ import annotations

import functools
import re

from hwrx.anatomy.symbols import NO_SYMBOL, Function

UNKNOWN = "other"
MADE = re.compile(r"(\.(constprop|isra|part|cold|lto_priv)(\.\d+)?)+$")
# first what has a layer of its own wherever it is called from, then the network from the socket to the wire
LAYERS = {
    "IOMMU": r"""
        \w*iommu\w*(\.\S+)? pfn_to_dma_pte\S* dma_pte_\w+ (__)?domain_(un)?map\w* __domain_mapping qi_\w+ iova\w*
        (__)?(alloc|free)_iova\w* clflush_cache_range dma_map_\w+ dma_unmap_\w+ rb_prev
    """,
    "copy": r"""
        _?copy_(user|to_iter|from_iter|from_user|to_user|page)\w* _?_?memcpy\w* memmove\w* copyin copyout
        rep_movs_alternative \w*memcpy\w*@libc\S* memcpy\S*@.* __get_user_\w+ __put_user_\w+ \w*csum_and_copy\w*
        __check_(object_size|heap_object) check_stack_object is_vmalloc_addr __virt_addr_valid rxe_mr_copy.*
    """,
    "checksum": r"""
        \w*icrc\w*(@.*)? crc\w*(@.*)? \w*crc32\w*(@.*)? \w*csum\w* udp4_hwcsum ip_send_check chksum\w*(@.*)?
        crypto_\w+ \w*pclmul\w*(@.*)? \w+@\[crc32\w*\]
    """,
    "locks": r"""
        _?_?(raw_)?_?(spin|read|write|seq)_?(un)?lock\w* _raw_\w*lock\w* __rcu_read_(un)?lock mutex_\w+
        __mutex\w+ rcu_\w* __?srcu_\w+ native_queued_\w+ __local_bh_(en|dis)able\w* up_read down_read\w*
        refcount\w* percpu_counter\w+ queued_\w+lock\w* call_rcu\w* kvfree_call_rcu pthread_spin\w+@.*
        pthread_mutex\w+@.* ___pthread\w+@.*
    """,
    "interrupt": r"""
        clear_pending_if\w*
        asm_(sysvec|common|exc)\w+ sysvec_\w+ common_interrupt error_(entry|return) irq_(enter|exit)\w*
        \w+_irq_\w+ __irq_\w+ handle_\w*irq\w* __handle_irq\w* (native_)?x?2?apic_\w+ native_apic\w+ irq_\w+
        ack_\w+apic\w* __common_interrupt early_xen_iret\w* note_interrupt generic_handle\w+ irqentry_\w+
        sync_regs native_irq_return\w* restore_regs\w* paranoid_\w+ vector_\w+ msi_\w+ pci_msi\w*
        add_interrupt_randomness mix_interrupt\w* fast_mix swapgs_restore\w* common_interrupt_return exc_\w+
        do_user_addr_fault handle_mm_fault call_on_irqstack\w* __sysvec\w+ io_apic\w* ioapic_\w+
        e1000_(intr|msix|test_msi)\w*@.* vfio_msihandler.* vfio_pci\w*intr\w*@.*
    """,
    "scheduler": r"""
        dequeue_entities update_entity_lag update_deadline __?set_next_task\w* assign_work mm_cid_\w+
        _?_?schedule\w* pick_\w+ \w*enqueue_(task|entity)\w* dequeue_(task|entity)\w*
        update_(load_avg|curr|cfs|min|rq|irq_load|blocked|se)\w* __update_load\w* psi_\w+ try_to_wake_up
        ttwu_\w+ __?wake_up\w* wake_\w+ default_wake\w* autoremove_wake\w* receiver_wake\w* prepare_to_wait\w*
        finish_(wait|task_switch)\S* add_wait\w* remove_wait\w* check_preempt\w* set_next_\w+ put_prev_\w+
        place_entity __?switch_\w+ switch_\w+ load_new_mm\w* save_fpregs\w* restore_fpregs\w* fpregs\w+
        cpuacct\w+ record_times rb_(erase|insert\w*|next|first) __rb_\w+ clear_buddies check_(spread|cfs)\S*
        hrtick\w+ update_cfs\w* native_load_tls invalidate_user\w* cr4_update\w* xfd_\w+ __(wr|rd)gsbase\w*
        resched_\w+ pull_\w+ select_(task|idle)\w* available_idle\w* cpu_idle\w* do_idle default_idle\w*
        arch_cpu_idle\w* tick_\w+ sched_(?!clock)\w+ scheduler_\w+ nohz_\w+ newidle\w* load_balance reweight\w*
        avg_vruntime\w* entity_\w+ __enqueue\w+ __dequeue\w+ __(en|de)queue_entity vruntime\w* requeue\w*
        wakeup_preempt\w* kthread\w* tsc_verify\w* nr_iowait\w* amd_e400\w* enter_lazy\w* native_safe_halt
        local_touch_nmi \w*yield\w* wait_woken woken_wake\w* init_wait\w* kill_fasync __bitmap_\w+ worker_\w+
        process_(one|scheduled)_\w+ __queue_work queue_work\w* insert_work pwq_\w+ wq_\w+ move_linked\w*
        find_worker\w* set_work\w* set_pf_worker cpuidle\w* call_cpuidle ct_\w+ amd_clear_divider task_\w+
        prb_\w+ __calc_\w+ accumulate_sum decay_load min_vruntime\w* __cond_resched rseq\w+ __rseq\w+ blkcg_\w+
        mem_cgroup_handle\w* acct_\w+ account_\w+ menu_\w+ need_update quiet_vmstat switch_ldt kick_pool
        __flush_smp\w* flush_smp\w* idle_\w+ native_sched_\w+ poll_idle __kthread\w+ asym_\w+ cpu_startup\w*
        intel_idle\w* acpi_idle\w* acpi_safe\w* acpi_processor\w* mwait\w* __resched\w* dl_\w+ __pick\w+
        finish_swait prepare_to_swait\w* swake_up\w* complete\w* llist_\w+ set_task\w* _find_\w+bit\w*
    """,
    "timers": r"""
        \w*hrtimer\w* \w*timer\w* timekeeping\w+ ktime_\w+ \w*clockevents?\w* lapic_\w+ update_wall\w*
        update_process_times run_posix\w* clock_gettime@vdso __clock_gettime@libc\S* read_tsc native_sched_clock
        sched_clock\w* __usecs_to\w+ jiffies\w* calc_\w+load\w* update_vsyscall\w* clocksource\w+ do_timer
        delay_tsc ntp_\w+ perf_\w+ arch_scale\w* update_fast\w+ call_timer\w* timerqueue\w+ __?get_next_\w+
    """,
    "system call": r"""
        fdget\w* arch_exit_to_user\w*
        entry_SYSCALL\w* do_syscall\w* syscall_\w+ x64_sys\w* __x64_sys\w* exit_to_user\w* entry_SYSRETQ\w*
        __ret(urn)?_\w+ __fget\w* __fdget\w* fput\w* fget\w* do_(sys_)?e?poll\w* ep_\w+ __?poll\w* eventpoll\w*
        __get_task_ioprio pollwake set_normalized_timespec64 timespec64\w+ do_epoll\w* sys_\w+ import_\w+
        vfs_\w+ ksys_\w+ new_sync_\w+ rw_verify\w* eventfd\w* get_timespec\w* __sys_\w+ poll_\w+ do_sys\w*
        select_\w+ set_user_sigmask restore_saved\w* sigprocmask unmask_\w* __set_task_blocked sigpending\w*
        recalc_\w+ do_restart\w* put_timespec\w* prepare_signal signal_\w+ map_id_range\w* make_k[ug]id
        kernfs_\w+ sysfs_\w+ file_ns_capable lockdown_is\w*
        do_vfs_ioctl __x86_\w+ iov_iter\w* __import_iovec _?copy_msghdr\w* ___sys_\w+ ____sys\w+ srso_\w+
        anon_\w+
    """,
    "security": r"""
        hook_\w+
        security_\w+ apparmor\w* aa_\w+ tomoyo\w* bpf_lsm\w* selinux\w* cap_\w+ lsm_\w+ fsnotify\w*
        __fsnotify\w*
    """,
    "TCP": r"""
        _?_?tcp_\w+(@.*)? bictcp\w* cubictcp\w* inet_csk\w* bpf_skops\w* tcp\w+ __?sk_mem_\w+
        sk_(stream|forced)\w+ inet_ehash\w* __inet_lookup\w* cookie_\w+ minmax_\w+ sk_wait_\w+ __release_sock
        release_sock lock_sock\w* __lock_sock\w*
    """,
    "UDP": r"""
        _?_?udp\w+(@.*)? __skb_(recv|try|wait)\w* skb_consume_udp __udp\w+ compute_score inet_gro\w*
        sk_filter\w*
    """,
    "IP": r"""
        __xfrm_\w+ xfrm_policy\w*
        _?_?ip\w*_\w+ ipv4_\w+ raw_local\w* inet_(?!csk)\w+ fib_\w+ __fib\w+ dst_\w+ arp_\w+ neigh_\w+
        __neigh\w+ sk_dst\w* siphash\w* rt_\w+ find_exception ip6?t?able_\w+ nf_\w+ nft_\w+ ip_\w+ icmp\w+
        raw_\w+ udp_tunnel\w* make_\w+skb l3mdev\w*
    """,
    "socket": r"""
        _?_?sock\w* sk_\w+ __sk\w+ skb_set_owner\w* import_single\w* alloc_skb_with\w* __sock\w+ ____sys\w+
        skb_(queue|dequeue|unlink|recv|copy_datagram|set_owner|orphan)\w* __skb_(datagram|queue)\w*
        simple_copy\w* datagram_\w+
    """,
    "buffers": r"""
        _?_?k?m?em?(cache|alloc|free)?_?kmem\w* kmem_\w+ _?_?kmalloc\w* _?_?kfree\w* __kmem\w+ _?_?alloc_skb\w*
        __build_skb\w*
        skb_(release|free|put|pull|push|clone|gro_free|headers|copy|ext|consume|try_coalesce|split|entail)\w*
        __skb\w* consume_skb kfree\w+ __kfree\w+ memset\w* __memset\w* cache_from\w* memcg_\w+ __?slab_\w+
        should_failslab napi_(consume|skb|build|alloc|get)\w* __napi_(alloc|build|kfree)\w* build_skb\w*
        page_\w+ __?free_\w+ alloc_\w*page\w* __alloc_page\w* __?consume\w+ get_page\w* __list_\w+ obj_cgroup\w*
        __memcg\w* refill\w* ___slab\w* put_cpu_partial setup_object\w* check_object\w* get_partial\w*
        deactivate\w* __pskb\w* pskb\w+ skb_\w+ ptr_\w+ __mod_\w+ mod_\w+ memdup\w* memchr_inv __radix_\w+
        mempool\w* radix_\w+ dma_\w+ __dma\w* swiotlb\w* domain_\w+
        put_page __put_\w+ __folio\w* folio_\w+ xas_\w+ xa_\w+ idr_\w+
        device_\w+map\w* pfn_\w+ clear_page\w* __copy_skb_header should_fail\w* free_(unref|pcp)\w*
        calloc@libc\S* malloc@libc\S* cfree@libc\S* _int_\w+@libc\S*
    """,
    "softirq": r"""
        _?_?do_softirq\S* handle_softirqs net_(rx|tx)_action __?napi_\w+ process_backlog raise_softirq\w*
        __raise\w* enqueue_to_backlog __?netif_rx\w* ksoftirqd\w* run_ksoftirqd tasklet\w* __tasklet\w*
        wakeup_softirqd napi_complete\w* smpboot\w* irqtime\w* invoke_softirq __netif_receive\w*
        netif_receive\w* napi_gro\w* dev_gro\w* gro_\w+ eth_type_trans skb_defer\w* netif_rx\w* busy_poll\w*
    """,
    "device queue": r"""
        _?_?dev_\w+ netif_\w+ validate_xmit\w* sch_\w+ qdisc\w* __qdisc\w* pfifo\w* fq_\w+ netdev_\w+ eth_\w+
        passthru\w* __netif\w+ xmit_\w+ packet_\w+ tpacket\w+ prb_\w+ dql_\w+ noqueue\w* sch\w+ tc_\w+ tcx_\w+
        __fq_\w+ xfrm_dev\w* xdp_\w+ bpf_prog\S*(@bpf)? __xdp\w* xsk_\w+ __xsk\w+
    """,
    "driver": r"""
        .*@\[(veth|e1000e|e1000|virtio_net|ne2k_pci|8390|vfio\S*|uio\S*|irqbypass|tun|ptp|virtio\S*)\]
        napi_schedule\w* (__)?pm_runtime_\w+ rpm_\w+ (__)?pci_\w+ resource_is_exclusive eoi_ioapic_pin
    """,
    "rxe": r"""
        sized_strscpy strnlen
        .*@\[(rdma_rxe|ib_\w+|rdma_\w+|ib_core|ib_uverbs)\] rxe_\w+(@.*)?
    """,
    "RDMA library": r"""
        .*@(librxe-\S+|libibverbs\S*|libmlx\S*|libefa\S*)
    """,
    "C library": r"""
        .*@(libc\.so\S*|libpthread\S*|ld-linux\S*|libm\.so\S*)
    """,
    "program": r"""
        .*@cython_ext\..* .*@python3.*
    """,
}
_TABLE = {layer: re.compile("|".join(words.split())) for layer, words in LAYERS.items()}


@functools.cache
def layer_of(function: Function) -> str:
    """Return a function's layer; UNKNOWN if the table does not know it or it has no symbol."""
    if function.name == NO_SYMBOL:
        return UNKNOWN
    said = MADE.sub("", function.name) + ("" if function.of == "vmlinux" else f"@{function.of}")
    return next((layer for layer, pattern in _TABLE.items() if pattern.fullmatch(said)), UNKNOWN)
