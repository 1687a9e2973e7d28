/* DPDK's access control library beside our classifier: the same rules, the same packets, in bulks of 64.
 *
 * Arguments: FILE ROUNDS. FILE holds numbers in words: how many rules, then for each the address, prefix length, protocol (0 for any), first and
 * last port; how many packets, then for each the address, protocol and port. The first rule that matches decides.
 *
 * Prints: build (milliseconds), bytes (of DPDK's heap), sum (over packets, of the number of the rule that decides, counted from 1, or 0), and
 * for each method that the processor has scalar, sse, avx2, avx512x16, avx512x32 (cycles of the time stamp counter per packet, one line for each round).
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <rte_acl.h>
#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_lcore.h>
#include <rte_malloc.h>

#define BULK 64

/* The protocol stands alone, then every four bytes are a group. No rule of ours is about the second port, but a group must be whole. */
struct packet {
	uint8_t protocol;
	uint8_t unused[3];
	uint32_t address;
	uint16_t port, other;
};

enum { PROTOCOL, ADDRESS, PORT, OTHER, FIELDS };

RTE_ACL_RULE_DEF(rule, FIELDS);

static void die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static FILE *file;

static uint32_t word(void)
{
	uint32_t value;
	if (fscanf(file, "%" SCNu32, &value) != 1)
		die("the file is cut short");
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
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static struct rte_acl_field_def field(int number, int type, int size, int group, size_t offset)
{
	struct rte_acl_field_def def = { .type = type, .size = size, .field_index = number, .input_index = group, .offset = offset };
	return def;
}

int main(int argc, char **argv)
{
	int taken = rte_eal_init(argc, argv);
	if (taken < 0)
		die("the environment layer does not start");
	argc -= taken;
	argv += taken;
	if (argc != 3)
		die("usage: FILE ROUNDS");
	file = fopen(argv[1], "r");
	if (!file)
		die("cannot open the file");
	int rounds = atoi(argv[2]);

	size_t before = heap();
	uint32_t count = word();
	struct rte_acl_param param = { .name = "peer", .socket_id = SOCKET_ID_ANY, .rule_size = RTE_ACL_RULE_SZ(FIELDS), .max_rule_num = count };
	struct rte_acl_ctx *context = rte_acl_create(&param);
	if (!context)
		die("no context");
	for (uint32_t i = 0; i < count; i++) {
		uint32_t address = word(), length = word(), protocol = word(), low = word(), high = word();
		struct rule rule = { .data = { .category_mask = 1, .priority = count - i, .userdata = i + 1 } };
		rule.field[PROTOCOL].value.u8 = protocol;
		rule.field[PROTOCOL].mask_range.u8 = protocol ? 0xff : 0;
		rule.field[ADDRESS].value.u32 = address;
		rule.field[ADDRESS].mask_range.u32 = length;
		rule.field[PORT].value.u16 = low;
		rule.field[PORT].mask_range.u16 = high;
		rule.field[OTHER].mask_range.u16 = UINT16_MAX;
		if (rte_acl_add_rules(context, (struct rte_acl_rule *)&rule, 1) != 0)
			die("a rule is not taken");
	}
	struct rte_acl_config config = { .num_categories = 1, .num_fields = FIELDS };
	config.defs[PROTOCOL] = field(PROTOCOL, RTE_ACL_FIELD_TYPE_BITMASK, 1, 0, offsetof(struct packet, protocol));
	config.defs[ADDRESS] = field(ADDRESS, RTE_ACL_FIELD_TYPE_MASK, 4, 1, offsetof(struct packet, address));
	config.defs[PORT] = field(PORT, RTE_ACL_FIELD_TYPE_RANGE, 2, 2, offsetof(struct packet, port));
	config.defs[OTHER] = field(OTHER, RTE_ACL_FIELD_TYPE_RANGE, 2, 2, offsetof(struct packet, other));
	double begun = now();
	if (rte_acl_build(context, &config) != 0)
		die("the rules do not build");
	printf("build %f\nbytes %zu\n", now() - begun, heap() - before);

	uint32_t packets = word() / BULK * BULK;
	struct packet *packet = calloc(packets, sizeof(*packet));
	const uint8_t **data = calloc(packets, sizeof(*data));
	uint32_t *results = calloc(packets, sizeof(*results));
	for (uint32_t i = 0; i < packets; i++) {
		packet[i].address = htonl(word());
		packet[i].protocol = word();
		packet[i].port = htons(word());
		data[i] = (const uint8_t *)&packet[i];
	}
	static const struct {
		const char *name;
		enum rte_acl_classify_alg way;
	} methods[] = {
		{ "scalar", RTE_ACL_CLASSIFY_SCALAR }, { "sse", RTE_ACL_CLASSIFY_SSE }, { "avx2", RTE_ACL_CLASSIFY_AVX2 },
		{ "avx512x16", RTE_ACL_CLASSIFY_AVX512X16 }, { "avx512x32", RTE_ACL_CLASSIFY_AVX512X32 },
	};
	int printed = 0;
	for (size_t m = 0; m < sizeof(methods) / sizeof(methods[0]); m++) {
		if (rte_acl_set_ctx_classify(context, methods[m].way) != 0)
			continue;
		for (int round = 0; round < rounds; round++) {
			uint64_t begun = rte_rdtsc_precise();
			for (uint32_t i = 0; i < packets; i += BULK)
				rte_acl_classify(context, data + i, results + i, BULK, 1);
			double cycles = (double)(rte_rdtsc_precise() - begun) / packets;
			printf("%s%d %f\n", methods[m].name, round, cycles);
		}
		double sum = 0;
		for (uint32_t i = 0; i < packets; i++)
			sum += results[i];
		if (!printed++)
			printf("sum %.0f\n", sum);
	}
	return 0;
}
