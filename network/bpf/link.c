/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links a pod's interface and the guest's TAP: each program runs where frames
 * arrive at one of the two and sends every one out at the other.
 *
 * Frames are handed over as the kernel holds them: segmentation offload and
 * partial checksums survive. Since none is passed on to the namespace's own
 * stack, that stack never answers for the guest: no ARP, no neighbour
 * discovery, no TCP reset.
 */
#include <linux/bpf.h>
#include <linux/types.h>

/*
 * Resolved by the loader, not by a linker: `counters` is the map's descriptor,
 * `target` the index of the interface the program sends to.
 */
extern char counters[];
extern char target[];

enum direction { TO_GUEST, FROM_GUEST };

/* One per direction and CPU. A frame that carries many segments counts once. */
struct traffic {
	__u64 packets;
	__u64 bytes;
};

static void *(*const map_lookup)(void *map, const void *key) =
	(void *)BPF_FUNC_map_lookup_elem;
static long (*const redirect)(__u32 ifindex, __u64 flags) =
	(void *)BPF_FUNC_redirect;

static inline __attribute__((always_inline)) int
hand_over(struct __sk_buff *frame, enum direction direction)
{
	__u32 key = direction;
	struct traffic *traffic = map_lookup(counters, &key);

	if (traffic) {
		/* Not atomic: the value is this CPU's and softirqs do not nest. */
		traffic->packets++;
		traffic->bytes += frame->len;
	}
	/*
	 * Not redirect_peer, which would save a pass through the backlog but hide
	 * what the pod sends from the interface's own statistics and shapers.
	 */
	return redirect((__u32)(unsigned long)target, 0);
}

__attribute__((section("tc/to_guest"), used)) int
to_guest(struct __sk_buff *frame)
{
	return hand_over(frame, TO_GUEST);
}

__attribute__((section("tc/from_guest"), used)) int
from_guest(struct __sk_buff *frame)
{
	return hand_over(frame, FROM_GUEST);
}
