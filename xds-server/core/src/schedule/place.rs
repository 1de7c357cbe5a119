//! Which replicas of a server take a model.
//!
//! Memory is balanced, but not by any set of replicas that happens to be emptiest: each distinct set is a cluster in
//! every Envoy. Sets are runs of neighbours on the ring of usable replicas (one per replica and size), or sets that are
//! in use already; only when none of these has room, any set does.
use crate::server::{Server, ServerReplica};

/// The most sets of one size that placement makes by choice, for each replica.
const SETS_PER_REPLICA: usize = 2;

/// One replica of the ring.
struct Seat {
    index: u32,
    free: u64,
    kept: bool,
    eligible: bool,
}

/// Free memory of the fullest newcomer and of all; more is better.
type Score = (u64, u64);

/// Chooses replicas for a version that keeps `kept` and shall have `want`, out of `eligible` (both sorted); the new
/// ones, sorted. Fewer are given only when there are fewer. `balance` says how welcome one more is on a replica.
pub(crate) fn choose(
    server: &Server,
    kept: &[u32],
    want: usize,
    eligible: &[u32],
    balance: fn(&ServerReplica) -> u64,
) -> Vec<u32> {
    let seats: Vec<Seat> = server
        .replicas
        .iter()
        .map(|(index, replica)| Seat {
            index: *index,
            free: balance(replica),
            kept: kept.binary_search(index).is_ok(),
            eligible: eligible.binary_search(index).is_ok(),
        })
        .filter(|seat| seat.kept || seat.eligible || server.replicas[&seat.index].usable())
        .collect();
    let size = want.min(kept.len() + eligible.len());
    if size <= kept.len() {
        return Vec::new();
    }
    let limit = SETS_PER_REPLICA * server.replicas.len();
    if combinations_exceed(seats.len(), size, limit)
        && let Some(set) = best_known(server, &seats, kept.len(), size, limit)
    {
        return set;
    }
    emptiest(&seats, size - kept.len())
}

/// Chooses which `keep` of `loaded` (sorted) stay; sorted.
pub(crate) fn retain(server: &Server, loaded: &[u32], keep: usize) -> Vec<u32> {
    let free = |index: &u32| {
        server
            .replicas
            .get(index)
            .map_or(0, |replica| replica.free())
    };
    let within = |set: &[u32]| set.iter().all(|index| loaded.binary_search(index).is_ok());
    // The fewest bytes are freed where they are least missed: drop the fullest.
    let score = |set: &[u32]| set.iter().map(free).fold((u64::MAX, 0u64), tally);
    let ring: Vec<u32> = server.usable().map(|(index, _)| index).collect();
    let runs = (0..ring.len()).map(|start| run(&ring, start, keep));
    let known = server
        .sets
        .of_size(keep)
        .map(<[u32]>::to_vec)
        .chain(runs.flatten());
    let mut best: Option<(Score, Vec<u32>)> = None;
    for set in known.filter(|set| within(set)) {
        let candidate = score(&set);
        if best.as_ref().is_none_or(|(score, _)| candidate > *score) {
            best = Some((candidate, set));
        }
    }
    if let Some((_, set)) = best {
        return set;
    }
    let mut order = loaded.to_vec();
    order.sort_by_key(|index| (std::cmp::Reverse(free(index)), *index));
    order.truncate(keep);
    order.sort_unstable();
    order
}

fn tally((least, sum): Score, free: u64) -> Score {
    (least.min(free), sum.saturating_add(free))
}

/// The run of `size` neighbours from `start`, sorted.
fn run(ring: &[u32], start: usize, size: usize) -> Option<Vec<u32>> {
    let mut set: Vec<u32> = (0..size)
        .map(|step| ring[(start + step) % ring.len()])
        .collect();
    set.sort_unstable();
    (size <= ring.len()).then_some(set)
}

fn best_known(
    server: &Server,
    seats: &[Seat],
    kept: usize,
    size: usize,
    limit: usize,
) -> Option<Vec<u32>> {
    let mut best: Option<(Score, Vec<u32>)> = None;
    let mut consider = |places: &[usize], only_known: bool| {
        if places.iter().filter(|at| seats[**at].kept).count() != kept {
            return;
        }
        let newcomers = || {
            places
                .iter()
                .map(|at| &seats[*at])
                .filter(|seat| !seat.kept)
        };
        if !newcomers().all(|seat| seat.eligible) {
            return;
        }
        let score = newcomers().map(|seat| seat.free).fold((u64::MAX, 0), tally);
        if best.as_ref().is_some_and(|(least, _)| score <= *least) {
            return;
        }
        if only_known {
            let mut whole: Vec<u32> = places.iter().map(|at| seats[*at].index).collect();
            whole.sort_unstable();
            if !server.sets.contains(&whole) {
                return;
            }
        }
        let mut set: Vec<u32> = newcomers().map(|seat| seat.index).collect();
        set.sort_unstable();
        best = Some((score, set));
    };
    let full = server.sets.count(size) >= limit;
    let mut places = Vec::with_capacity(size);
    for start in 0..seats.len() {
        places.clear();
        places.extend((0..size).map(|step| (start + step) % seats.len()));
        consider(&places, full);
    }
    for set in server.sets.of_size(size) {
        places.clear();
        places.extend(
            set.iter()
                .filter_map(|index| seats.binary_search_by_key(index, |seat| seat.index).ok()),
        );
        if places.len() == size {
            consider(&places, false);
        }
    }
    best.map(|(_, set)| set)
}

fn emptiest(seats: &[Seat], count: usize) -> Vec<u32> {
    let mut free: Vec<&Seat> = seats
        .iter()
        .filter(|seat| seat.eligible && !seat.kept)
        .collect();
    free.sort_by_key(|seat| (std::cmp::Reverse(seat.free), seat.index));
    let mut set: Vec<u32> = free.iter().take(count).map(|seat| seat.index).collect();
    set.sort_unstable();
    set
}

/// Whether there are more than `limit` ways to pick `size` of `of`.
fn combinations_exceed(of: usize, size: usize, limit: usize) -> bool {
    let mut ways = 1usize;
    for step in 0..size.min(of - size.min(of)) {
        ways = ways.saturating_mul(of - step) / (step + 1);
        if ways > limit {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(free: &[u64]) -> Server {
        let mut server = Server::default();
        for (index, free) in (0u32..).zip(free) {
            let mut replica = ServerReplica::new(index);
            replica.stream = Some(1);
            replica.capacity = *free;
            server.replicas.insert(index, replica);
        }
        server
    }

    #[test]
    fn few_replicas_go_by_free_memory() {
        let world = server(&[5, 9, 7]);
        assert_eq!(choose(&world, &[], 1, &[0, 1, 2], ServerReplica::free), [1]);
        assert_eq!(
            choose(&world, &[], 2, &[0, 1, 2], ServerReplica::free),
            [1, 2]
        );
        assert_eq!(choose(&world, &[1], 2, &[0, 2], ServerReplica::free), [2]);
        assert_eq!(choose(&world, &[], 5, &[0, 2], ServerReplica::free), [0, 2]);
        assert_eq!(
            choose(&server(&[5, 5]), &[], 1, &[0, 1], ServerReplica::free),
            [0]
        );
    }

    #[test]
    fn many_replicas_go_by_runs_and_sets_in_use() {
        let mut world = server(&[10, 10, 10, 10, 30, 10, 10, 10, 10, 30]);
        let all: Vec<u32> = (0..10).collect();
        assert_eq!(choose(&world, &[], 3, &all, ServerReplica::free), [2, 3, 4]);
        world.sets.add(&[0, 4, 9]);
        assert_eq!(choose(&world, &[], 3, &all, ServerReplica::free), [0, 4, 9]);
        // Nothing known has room: any set does.
        assert_eq!(
            choose(&world, &[], 3, &[1, 3, 7], ServerReplica::free),
            [1, 3, 7]
        );
    }

    #[test]
    fn scaling_down_stays_within_known_sets() {
        let world = server(&[10; 10]);
        assert_eq!(retain(&world, &[0, 1, 9], 2), [0, 1]);
        assert_eq!(retain(&world, &[2, 5, 8], 2), [2, 5]);
        assert!(
            combinations_exceed(20, 3, 40)
                && !combinations_exceed(5, 2, 10)
                && !combinations_exceed(3, 3, 1)
        );
    }
}
