/* DPDK's longest prefix match beside ours: the same prefixes, the same addresses, in bulks of 64.
 *
 * Arguments: TABLE FILE ROUNDS. TABLE is fib2 or fib4 (rte_fib, DIR24_8, next hops of 2 or 4 bytes), fib6 (rte_fib6, TRIE, 4 bytes) or
 * lpm (rte_lpm, whose insertion is too slow for a million). FILE, in host byte order: the number of prefixes, then for each the length, the
 * next hop and the address; the number of addresses to look up, then for IPv6 those. All are 32 bits wide but the addresses of IPv6, which are
 * 16 bytes in network order. Addresses of IPv4 are made from the number of the look-up, as in bench/src/lpm.rs.
 *
 * Prints: cycles (of the time stamp counter, per look-up, one line for each round), bytes (of DPDK's heap), sum (of the next hops found),
 * and add (nanoseconds for each prefix).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_fib.h>
#include <rte_fib6.h>
#include <rte_lpm.h>
#include <rte_malloc.h>

#define BULK 64

static void die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static FILE *file;

static void take(void *to, size_t size)
{
	if (fread(to, 1, size, file) != size)
		die("the file is cut short");
}

static uint32_t word(void)
{
	uint32_t value;
	take(&value, sizeof(value));
	return value;
}

static size_t heap(void)
{
	struct rte_malloc_socket_stats stats;
	if (rte_malloc_get_socket_stats(rte_socket_id(), &stats) != 0)
		die("no statistics of the heap");
	return stats.heap_allocsz_bytes;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static uint32_t scattered(uint64_t index)
{
	uint64_t z = index * 0x9e3779b97f4a7c15;
	z ^= z >> 32;
	return z * 0xd6e8feb86659fd93 >> 32;
}

struct prefix {
	uint32_t length, next_hop, v4;
	uint8_t v6[16];
};

int main(int argc, char **argv)
{
	int taken = rte_eal_init(argc, argv);
	if (taken < 0)
		die("the environment layer does not start");
	argc -= taken;
	argv += taken;
	if (argc != 4)
		die("usage: TABLE FILE ROUNDS");
	const char *table = argv[1];
	int six = strcmp(table, "fib6") == 0, lpm = strcmp(table, "lpm") == 0;
	int rounds = atoi(argv[3]);
	file = fopen(argv[2], "rb");
	if (!file)
		die("cannot open the file");

	uint32_t count = word(), tbl8 = 1 << 16;
	struct prefix *prefixes = calloc(count, sizeof(*prefixes));
	for (uint32_t i = 0; i < count; i++) {
		struct prefix *prefix = &prefixes[i];
		prefix->length = word();
		prefix->next_hop = word();
		if (six)
			take(prefix->v6, 16);
		else
			prefix->v4 = word();
	}
	uint32_t lookups = word() / BULK * BULK;
	uint8_t (*addresses)[16] = malloc((size_t)lookups * 16);
	if (six)
		take(addresses, (size_t)lookups * 16);

	/* As many second tables as fit the longer prefixes, by doubling until all are taken. */
	struct rte_fib *fib = NULL;
	struct rte_fib6 *fib6 = NULL;
	struct rte_lpm *trie = NULL;
	size_t before;
	double spent;
	for (;; tbl8 *= 2) {
		before = heap();
		struct rte_fib_conf conf = { .type = RTE_FIB_DIR24_8, .default_nh = 0, .max_routes = count + 1 };
		conf.dir24_8.nh_sz = strcmp(table, "fib2") == 0 ? RTE_FIB_DIR24_8_2B : RTE_FIB_DIR24_8_4B;
		conf.dir24_8.num_tbl8 = conf.dir24_8.nh_sz == RTE_FIB_DIR24_8_2B ? 32767 : tbl8;
		struct rte_fib6_conf conf6 = { .type = RTE_FIB6_TRIE, .default_nh = 0, .max_routes = count + 1 };
		conf6.trie.nh_sz = RTE_FIB6_TRIE_4B;
		conf6.trie.num_tbl8 = tbl8;
		struct rte_lpm_config config = { .max_rules = count + 1, .number_tbl8s = tbl8 };
		if (six)
			fib6 = rte_fib6_create("t", rte_socket_id(), &conf6);
		else if (lpm)
			trie = rte_lpm_create("t", rte_socket_id(), &config);
		else
			fib = rte_fib_create("t", rte_socket_id(), &conf);
		if (!fib && !fib6 && !trie)
			die("the table is not made: too little memory?");
		double begun = now();
		uint32_t i;
		for (i = 0; i < count; i++) {
			struct prefix *prefix = &prefixes[i];
			int failed;
			if (six)
				failed = rte_fib6_add(fib6, prefix->v6, prefix->length, prefix->next_hop);
			else if (lpm)
				failed = rte_lpm_add(trie, prefix->v4, prefix->length, prefix->next_hop);
			else
				failed = rte_fib_add(fib, prefix->v4, prefix->length, prefix->next_hop);
			if (failed)
				break;
		}
		spent = now() - begun;
		if (i == count)
			break;
		if (tbl8 >= 1 << 22 || (fib && conf.dir24_8.nh_sz == RTE_FIB_DIR24_8_2B))
			die("a prefix is not taken");
		rte_fib_free(fib);
		rte_fib6_free(fib6);
		rte_lpm_free(trie);
		fib = NULL;
		fib6 = NULL;
		trie = NULL;
	}
	printf("bytes %zu\nadd %f\n", heap() - before, spent / count);
	if (fib)
		rte_fib_select_lookup(fib, RTE_FIB_LOOKUP_DEFAULT);
	if (fib6)
		rte_fib6_select_lookup(fib6, RTE_FIB6_LOOKUP_DEFAULT);

	for (int round = 0; round < rounds; round++) {
		uint64_t sum = 0, begun = rte_rdtsc_precise();
		for (uint32_t i = 0; i < lookups; i += BULK) {
			uint64_t wide[BULK];
			uint32_t narrow[BULK], four[BULK];
			if (!six)
				for (int k = 0; k < BULK; k++)
					four[k] = scattered(i + k);
			if (six)
				rte_fib6_lookup_bulk(fib6, addresses + i, wide, BULK);
			else if (lpm)
				rte_lpm_lookup_bulk(trie, four, narrow, BULK);
			else
				rte_fib_lookup_bulk(fib, four, wide, BULK);
			for (int k = 0; k < BULK; k++)
				sum += !lpm ? wide[k] : narrow[k] & RTE_LPM_LOOKUP_SUCCESS ? narrow[k] & 0xffffff : 0;
		}
		double cycles = (double)(rte_rdtsc_precise() - begun) / lookups;
		printf("cycles%d %f\n", round, cycles);
		if (round == 0)
			printf("sum %.0f\n", (double)sum);
	}
	return 0;
}
