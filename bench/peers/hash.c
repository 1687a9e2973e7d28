/* DPDK's hash table beside our session table: as many keys, looked up in bulks of 32, each hashed on the way. A key is 16 bytes: addresses, ports, protocol
 * and a part of the VNI; ours is 40, for both families and both directions.
 *
 * Arguments: KEYS ROUNDS. Prints hit0.., miss0.. and add (cycles of the time stamp counter for each key).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>

#define BULK 32
#define LOOKUPS (1 << 18)

struct key {
	uint32_t source, destination;
	uint16_t source_port, destination_port;
	uint32_t rest;
};

static void die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static struct key key_of(uint32_t number, uint32_t rest)
{
	struct key key = { 0x0a00010b, 0x0a00020c, number, 1000 + (number >> 16), rest };
	return key;
}

static uint32_t scattered(uint64_t index)
{
	uint64_t z = index * 0x9e3779b97f4a7c15;
	z ^= z >> 32;
	return z * 0xd6e8feb86659fd93 >> 32;
}

static double look_up(const struct rte_hash *table, const struct key *keys, int wanted)
{
	uint64_t found = 0, begun = rte_rdtsc();
	for (size_t at = 0; at < LOOKUPS; at += BULK) {
		const void *pointers[BULK];
		void *data[BULK];
		uint64_t hits = 0;
		for (int i = 0; i < BULK; i++)
			pointers[i] = &keys[at + i];
		rte_hash_lookup_bulk_data(table, pointers, BULK, &hits, data);
		found += __builtin_popcountll(hits);
	}
	double spent = rte_rdtsc() - begun;
	if (found != (wanted ? LOOKUPS : 0))
		die("a key is not where it should be");
	return spent / LOOKUPS;
}

int main(int argc, char **argv)
{
	int taken = rte_eal_init(argc, argv);
	if (taken < 0)
		die("the environment layer does not start");
	argc -= taken;
	argv += taken;
	if (argc != 3)
		die("usage: KEYS ROUNDS");
	uint32_t count = atoi(argv[1]);
	int rounds = atoi(argv[2]);
	struct rte_hash_parameters parameters = {
		.name = "sessions", .entries = count * 2, .key_len = sizeof(struct key), .hash_func = rte_hash_crc,
		.socket_id = rte_socket_id(),
	};
	struct rte_hash *table = rte_hash_create(&parameters);
	if (!table)
		die("no table");
	uint64_t begun = rte_rdtsc();
	for (uint32_t i = 0; i < count; i++) {
		struct key key = key_of(i, 17);
		if (rte_hash_add_key_data(table, &key, (void *)(uintptr_t)(i + 1)) != 0)
			die("a key does not fit");
	}
	printf("add %f\n", (double)(rte_rdtsc() - begun) / count);
	struct key *known = malloc(sizeof(*known) * LOOKUPS), *unknown = malloc(sizeof(*unknown) * LOOKUPS);
	for (uint32_t i = 0; i < LOOKUPS; i++) {
		uint32_t number = (uint64_t)scattered(i) * count >> 32;
		known[i] = key_of(number, 17);
		unknown[i] = key_of(number, 6);
	}
	for (int round = 0; round < rounds; round++) {
		printf("hit%d %f\n", round, look_up(table, known, 1));
		printf("miss%d %f\n", round, look_up(table, unknown, 0));
	}
	return 0;
}
