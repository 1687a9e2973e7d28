//! Longest prefix match: look-ups at sizes, many small tables, changes, memory; beside DPDK's tables with the same prefixes and addresses.
//!
//! Addresses of IPv4 are random and made in the measured loop, by us and by the peer alike, so that a list of them does not compete for the
//! cache. Those of IPv6 lie in random prefixes of the table and come from a list.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use weft_dataplane::packet::parse::IPV4_MAPPED;
use weft_dataplane::route::{Lpm, Prefix};

use crate::clock::cycles;
use crate::{Row, dpdk, median};

const SAMPLES: usize = 9;
const LOOKUPS: usize = 1 << 20;
const BATCH: usize = 64;
const NEXT_HOPS: u64 = 1000;

/// A number that looks random, the same in `peers/lpm.c`.
fn scatter(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z ^= z >> 32;
    z.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The address of a look-up.
fn ipv4(index: usize) -> u32 {
    (scatter(index as u64) >> 32) as u32
}

/// Numbers for the making of tables.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        scatter(scatter(self.0) ^ 0x5bd1_e995)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 32) % bound
    }

    /// Lengths much as in the Internet's tables: most are 24, few are short; 1.5 % are longer, as routes to hosts are.
    fn ipv4_length(&mut self) -> u8 {
        match self.below(1000) {
            0..620 => 24,
            620..720 => 23,
            720..820 => 22,
            820..860 => 21,
            860..900 => 20,
            900..930 => 19,
            930..945 => 18,
            945..955 => 17,
            955..970 => 16,
            970..985 => 25 + self.below(8) as u8,
            985..992 => 15,
            992..997 => 14,
            _ => 8 + self.below(6) as u8,
        }
    }

    /// Likewise: 48 and 64 lead, 32 and 40 follow.
    fn ipv6_length(&mut self) -> u8 {
        match self.below(100) {
            0..45 => 48,
            45..60 => 64,
            60..75 => 32,
            75..85 => 40,
            85..95 => 44,
            95..98 => 36,
            _ => 128,
        }
    }

    fn prefix(&mut self, ipv6: bool) -> Prefix {
        if ipv6 {
            let address = u128::from(self.next()) << 64 | u128::from(self.next());
            Prefix::new(1 << 125 | address >> 3, self.ipv6_length())
        } else {
            let length = 96 + self.ipv4_length();
            Prefix::new(IPV4_MAPPED | u128::from(self.next() as u32), length)
        }
    }

    /// That many different prefixes with their next hops, the shorter first (the way in which `rte_fib` of DPDK 22.11 takes them: added
    /// the other way round, it loses some).
    fn prefixes(&mut self, count: usize, ipv6: bool) -> Vec<(Prefix, u32)> {
        let mut seen = HashSet::new();
        while seen.len() < count {
            seen.insert(self.prefix(ipv6));
        }
        let mut prefixes: Vec<Prefix> = seen.into_iter().collect();
        prefixes.sort_unstable_by_key(|prefix| (prefix.length(), prefix.bits()));
        let next_hop = |_: &Prefix| 1 + self.below(NEXT_HOPS) as u32;
        let next_hops: Vec<u32> = prefixes.iter().map(next_hop).collect();
        prefixes.into_iter().zip(next_hops).collect()
    }
}

/// Cycles for each look-up, and the sum of what was found.
type Measured = (f64, u64);

fn measure_ipv4(table: &Lpm<u32>) -> Measured {
    let mut sum = 0;
    let begun = cycles();
    for first in (0..LOOKUPS).step_by(BATCH) {
        let mut addresses = [0; BATCH];
        for (i, address) in addresses.iter_mut().enumerate() {
            *address = IPV4_MAPPED | u128::from(ipv4(first + i));
        }
        table.lookup_batch(&addresses, |found| sum += u64::from(found.unwrap_or(0)));
    }
    ((cycles() - begun) as f64 / LOOKUPS as f64, sum)
}

fn measure_singly(table: &Lpm<u32>) -> Measured {
    let mut sum = 0;
    let begun = cycles();
    for i in 0..LOOKUPS {
        let found = table.lookup(IPV4_MAPPED | u128::from(ipv4(i)));
        sum += found.map_or(0, |(_, next_hop)| u64::from(next_hop));
    }
    ((cycles() - begun) as f64 / LOOKUPS as f64, sum)
}

fn measure_list(table: &Lpm<u32>, addresses: &[u128]) -> Measured {
    let mut sum = 0;
    let begun = cycles();
    for addresses in addresses.chunks(BATCH) {
        table.lookup_batch(addresses, |found| sum += u64::from(found.unwrap_or(0)));
    }
    ((cycles() - begun) as f64 / addresses.len() as f64, sum)
}

fn row(name: impl std::fmt::Display, unit: &'static str, samples: Vec<f64>) -> Row {
    Row {
        name: format!("lpm: {name}"),
        unit,
        samples,
        goal: None,
        peer: None,
    }
}

/// What a peer has measured.
struct Peer {
    cycles: Vec<f64>,
    bytes: f64,
    sum: f64,
}

fn peer(table: &str, file: &Path) -> anyhow::Result<Peer> {
    let arguments = [
        table.to_owned(),
        file.display().to_string(),
        SAMPLES.to_string(),
    ];
    let figures = dpdk::run("lpm", &arguments)?;
    let figure = |name: &str| figures.get(name).copied().unwrap_or(f64::NAN);
    Ok(Peer {
        cycles: (0..SAMPLES)
            .map(|i| figure(&format!("cycles{i}")))
            .collect(),
        bytes: figure("bytes"),
        sum: figure("sum"),
    })
}

/// Writes the file that `peers/lpm.c` reads.
fn write(prefixes: &[(Prefix, u32)], addresses: &[u128]) -> anyhow::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("weft-bench-lpm-{}", std::process::id()));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    let mut words = |words: &[u32]| -> std::io::Result<()> {
        words
            .iter()
            .try_for_each(|word| file.write_all(&word.to_ne_bytes()))
    };
    let octets = |address: u128| {
        address
            .to_be_bytes()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| u32::from_ne_bytes(*bytes))
            .collect::<Vec<_>>()
    };
    words(&[prefixes.len() as u32])?;
    for (prefix, next_hop) in prefixes {
        if addresses.is_empty() {
            let length = prefix.length() - 96;
            words(&[length.into(), *next_hop, prefix.bits() as u32])?;
        } else {
            words(&[prefix.length().into(), *next_hop])?;
            words(&octets(prefix.bits()))?;
        }
    }
    if addresses.is_empty() {
        words(&[LOOKUPS as u32])?;
    } else {
        words(&[addresses.len() as u32])?;
        for address in addresses {
            words(&octets(*address))?;
        }
    }
    file.flush()?;
    Ok(path)
}

/// The file's peers, one after the other; the file is removed.
fn peers(tables: &[&str], file: &Path) -> anyhow::Result<Vec<Peer>> {
    let measured = tables.iter().map(|table| peer(table, file)).collect();
    std::fs::remove_file(file)?;
    measured
}

fn large_ipv4(with_peers: bool) -> anyhow::Result<Vec<Row>> {
    const COUNT: usize = 1_000_000;
    let prefixes = Random(1).prefixes(COUNT, false);
    let table: Lpm<u32> = prefixes.iter().copied().collect();
    let (_, sum) = measure_ipv4(&table);
    anyhow::ensure!(
        sum == measure_singly(&table).1,
        "look-ups in batches find something else than single ones"
    );
    let sample = |count: usize| (0..count).map(|_| measure_ipv4(&table).0);
    let mut samples: Vec<f64> = sample(SAMPLES / 2).collect();
    let mut others = Vec::new();
    if with_peers {
        others = peers(&["fib4", "fib2"], &write(&prefixes, &[])?)?;
    }
    samples.extend(sample(SAMPLES - SAMPLES / 2));
    let mut batch = row(
        "IPv4, 1M prefixes, random addresses, in batches",
        "cycles/look-up",
        samples,
    );
    let bytes = table.bytes() as f64 / COUNT as f64;
    let mut memory = row("IPv4, 1M prefixes, memory", "bytes/prefix", vec![bytes]);
    let mut rows = Vec::new();
    if let [wide, narrow] = &others[..] {
        for peer in [wide, narrow] {
            anyhow::ensure!(peer.sum == sum as f64, "the peer finds something else");
        }
        batch.goal = Some((median(&wide.cycles), false));
        batch.peer = Some(("DPDK rte_fib, 4-byte next hops, bulk", wide.cycles.clone()));
        memory.goal = Some((wide.bytes / COUNT as f64, false));
        memory.peer = Some(("DPDK rte_fib", vec![wide.bytes / COUNT as f64]));
        let mut second = row(
            "the same, beside next hops of 2 bytes",
            "cycles/look-up",
            batch.samples.clone(),
        );
        second.peer = Some((
            "DPDK rte_fib, 2-byte next hops, bulk",
            narrow.cycles.clone(),
        ));
        rows.push(second);
    }
    rows.insert(0, batch);
    rows.push(row(
        "IPv4, 1M prefixes, one by one",
        "cycles/look-up",
        (0..SAMPLES).map(|_| measure_singly(&table).0).collect(),
    ));
    rows.push(memory);
    rows.extend(changes(table, &prefixes));
    Ok(rows)
}

/// Takes out and puts back random prefixes, each time in a copy that then replaces the table, as the agent does.
fn changes(mut table: Lpm<u32>, prefixes: &[(Prefix, u32)]) -> Vec<Row> {
    let mut random = Random(2);
    let mut times = Vec::new();
    for _ in 0..2000 {
        let (prefix, next_hop) = prefixes[random.below(prefixes.len() as u64) as usize];
        for put_back in [false, true] {
            let begun = Instant::now();
            let mut copy = table.clone();
            if put_back {
                copy.insert(prefix, next_hop);
            } else {
                copy.remove(prefix);
            }
            table = copy;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    let [half, most] = [at(0.5), at(0.99)];
    let name = |which| format!("IPv4, 1M prefixes, one changed in a copy, {which}");
    let mut last = row(name("99th percentile"), "microseconds", vec![most]);
    last.goal = Some((1000.0, false));
    vec![row(name("median"), "microseconds", vec![half]), last]
}

/// Addresses to look up in a table of IPv6: random ones within random prefixes of it.
fn within(random: &mut Random, prefixes: &[(Prefix, u32)]) -> Vec<u128> {
    let mut address = |_| {
        let (prefix, _) = prefixes[random.below(prefixes.len() as u64) as usize];
        let low = u128::from(random.next()) << 64 | u128::from(random.next());
        prefix.bits() | low.checked_shr(prefix.length().into()).unwrap_or(0)
    };
    (0..LOOKUPS).map(&mut address).collect()
}

fn small_ipv6(count: usize, name: &str) -> Row {
    let mut random = Random(6);
    let prefixes = random.prefixes(count, true);
    let table: Lpm<u32> = prefixes.iter().copied().collect();
    let addresses = within(&mut random, &prefixes);
    row(
        format!("IPv6, {name} prefixes, addresses within them, in batches"),
        "cycles/look-up",
        (0..SAMPLES)
            .map(|_| measure_list(&table, &addresses).0)
            .collect(),
    )
}

fn ipv6(with_peers: bool) -> anyhow::Result<Vec<Row>> {
    const COUNT: usize = 200_000;
    let mut random = Random(3);
    let prefixes = random.prefixes(COUNT, true);
    let table: Lpm<u32> = prefixes.iter().copied().collect();
    let addresses = within(&mut random, &prefixes);
    let (_, sum) = measure_list(&table, &addresses);
    let sample = |count: usize| (0..count).map(|_| measure_list(&table, &addresses).0);
    let mut samples: Vec<f64> = sample(SAMPLES / 2).collect();
    let mut others = Vec::new();
    if with_peers {
        others = peers(&["fib6"], &write(&prefixes, &addresses)?)?;
    }
    samples.extend(sample(SAMPLES - SAMPLES / 2));
    let mut batch = row(
        "IPv6, 200k prefixes, addresses within them, in batches",
        "cycles/look-up",
        samples,
    );
    let bytes = table.bytes() as f64 / COUNT as f64;
    let mut memory = row("IPv6, 200k prefixes, memory", "bytes/prefix", vec![bytes]);
    if let [fib] = &others[..] {
        anyhow::ensure!(fib.sum == sum as f64, "the peer finds something else");
        batch.peer = Some(("DPDK rte_fib6, TRIE, bulk", fib.cycles.clone()));
        memory.peer = Some(("DPDK rte_fib6", vec![fib.bytes / COUNT as f64]));
    }
    Ok(vec![batch, memory])
}

/// As many tables as a host can have VPCs, with a handful of routes each.
fn many_tables() -> Vec<Row> {
    const TABLES: usize = 100_000;
    const ROUTES: usize = 10;
    let mut random = Random(4);
    let mut table = |_| -> Lpm<u32> {
        (0..ROUTES as u32)
            .map(|i| {
                let bits = 0x0a00_0000 | random.next() as u32 & 0xff_ffff;
                let length = if i == 0 {
                    0
                } else {
                    16 + random.below(9) as u8
                };
                let prefix = Prefix::new(IPV4_MAPPED | u128::from(bits), 96 + length);
                (prefix, i + 1)
            })
            .collect()
    };
    let tables: Vec<Lpm<u32>> = (0..TABLES).map(&mut table).collect();
    let bytes: usize = tables.iter().map(Lpm::bytes).sum();
    let mut sum = 0;
    let mut sample = |_| {
        let begun = cycles();
        for i in 0..LOOKUPS {
            let which = scatter(i as u64 ^ 0x55_5555) as usize % TABLES;
            let address = IPV4_MAPPED | 0x0a00_0000 | u128::from(ipv4(i) >> 8);
            sum += tables[which].lookup(address).map_or(0, |(_, value)| value);
        }
        (cycles() - begun) as f64 / LOOKUPS as f64
    };
    let samples = (0..SAMPLES).map(&mut sample).collect();
    std::hint::black_box(sum);
    vec![
        row(
            "100k tables of 10 prefixes, a random one, one by one",
            "cycles/look-up",
            samples,
        ),
        row(
            "100k tables of 10 prefixes, memory",
            "bytes/prefix",
            vec![bytes as f64 / (TABLES * ROUTES) as f64],
        ),
    ]
}

pub(crate) fn rows(with_peers: bool) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (count, name) in [(10, "10"), (1_000, "1k"), (100_000, "100k")] {
        let prefixes = Random(5).prefixes(count, false);
        let table: Lpm<u32> = prefixes.iter().copied().collect();
        let mut sizes = row(
            format!("IPv4, {name} prefixes, random addresses, in batches"),
            "cycles/look-up",
            (0..SAMPLES).map(|_| measure_ipv4(&table).0).collect(),
        );
        // To a million, rte_lpm takes minutes to add the prefixes.
        if with_peers && let [lpm] = &peers(&["lpm"], &write(&prefixes, &[])?)?[..] {
            sizes.peer = Some(("DPDK rte_lpm, bulk", lpm.cycles.clone()));
        }
        rows.push(sizes);
    }
    rows.extend(large_ipv4(with_peers)?);
    rows.extend(
        [(10, "10"), (1_000, "1k"), (20_000, "20k")].map(|(count, name)| small_ipv6(count, name)),
    );
    rows.extend(ipv6(with_peers)?);
    rows.extend(many_tables());
    Ok(rows)
}
