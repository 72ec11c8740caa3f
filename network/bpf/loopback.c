/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steers every TCP connection to the loopback of a pod's namespace to one
 * listener, whatever the port: whoever dials localhost there means the pod,
 * whose loopback is in the guest. The accepted socket's own address says what
 * was dialled.
 */
#include <linux/bpf.h>
#include <linux/types.h>

/* Resolved by the loader: the map that holds the listener under 0. */
extern char listener[];

#define FAMILY_INET 2
#define FAMILY_INET6 10
#define PROTOCOL_TCP 6

static void *(*const map_lookup)(void *map, const void *key) =
	(void *)BPF_FUNC_map_lookup_elem;
static long (*const assign)(struct bpf_sk_lookup *lookup, struct bpf_sock *socket,
			    __u64 flags) = (void *)BPF_FUNC_sk_assign;
static long (*const release)(struct bpf_sock *socket) =
	(void *)BPF_FUNC_sk_release;

/* Addresses are in network byte order; the processor is little-endian. */
static inline __attribute__((always_inline)) int
to_loopback(const struct bpf_sk_lookup *lookup)
{
	if (lookup->family == FAMILY_INET)
		return (lookup->local_ip4 & 0xff) == 127;
	return lookup->family == FAMILY_INET6 && lookup->local_ip6[0] == 0 &&
	       lookup->local_ip6[1] == 0 && lookup->local_ip6[2] == 0 &&
	       lookup->local_ip6[3] == 1 << 24;
}

__attribute__((section("sk_lookup/loopback"), used)) int
loopback(struct bpf_sk_lookup *lookup)
{
	const __u32 key = 0;
	struct bpf_sock *socket;

	if (lookup->protocol != PROTOCOL_TCP || !to_loopback(lookup))
		return SK_PASS;
	socket = map_lookup(listener, &key);
	/* Empty once the listener is closed: then the namespace refuses by itself. */
	if (!socket)
		return SK_PASS;
	assign(lookup, socket, 0);
	release(socket);
	return SK_PASS;
}
