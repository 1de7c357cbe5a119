//! The machine against a fake Envoy, under random changes, delays and refusals.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{CLUSTERS, ENDPOINTS, Stream};
use crate::{
    Change, Node,
    wire::{Answer, Asked, Names, hex},
    world::{Content, View, World},
};

const SCOPES: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
const FILTERS: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const ORDER: [&str; 4] = [CLUSTERS, ENDPOINTS, SCOPES, FILTERS];

type Held = HashMap<String, (String, Bytes)>;

/// A client that holds what it accepts and checks at every step that no scope lacks its cluster.
#[derive(Default)]
struct FakeEnvoy {
    delta: bool,
    held: HashMap<String, Held>,
    inbox: VecDeque<Answer>,
    endpoint_names: BTreeSet<String>,
    /// Cluster responses whose acknowledgement waits for endpoints, as in Envoy.
    withheld: Option<(Asked, BTreeSet<String>)>,
}

fn refuses(body: &Bytes) -> bool {
    body.starts_with(b"bad")
}

impl FakeEnvoy {
    fn request(&self, url: &str, names: &[&str], nonce: &str, error: bool) -> Asked {
        let names = match self.delta {
            true => Names::Delta {
                subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
                unsubscribe: Vec::new(),
                initial: HashMap::new(),
            },
            false if url == ENDPOINTS => Names::Full {
                names: self.endpoint_names.iter().cloned().collect(),
                version: String::new(),
            },
            false => Names::Full {
                names: Vec::new(),
                version: String::new(),
            },
        };
        Asked {
            node: None,
            type_url: url.to_owned(),
            nonce: nonce.to_owned(),
            error: error.then(|| "no".to_owned()),
            names,
        }
    }

    /// Takes the oldest response; what it sends back.
    fn step(&mut self) -> Vec<Asked> {
        let Some(answer) = self.inbox.pop_front() else {
            return Vec::new();
        };
        let url = answer.type_url.to_string();
        let bad = answer.resources.iter().any(|(_, c)| refuses(&c.body));
        let partly = &*url == CLUSTERS;
        let mut warming = BTreeSet::new();
        let held = self.held.entry(url.clone()).or_default();
        let mut requests = Vec::new();
        if !bad || partly {
            if !self.delta && url != ENDPOINTS {
                let names: BTreeSet<&str> = answer.resources.iter().map(|(n, _)| &**n).collect();
                held.retain(|name, _| names.contains(name.as_str()));
            }
            for (name, content) in &answer.resources {
                // A response may have been on its way when the client lost interest.
                let unasked = url == ENDPOINTS && !self.endpoint_names.contains(&**name);
                if refuses(&content.body) || unasked {
                    continue;
                }
                let value = (hex(content.version), content.body.clone());
                let same = held.insert(name.to_string(), value.clone()) == Some(value);
                if partly && !same {
                    warming.insert(name.to_string());
                }
            }
            for name in &answer.removed {
                held.remove(&**name);
            }
        }
        let ack = self.request(&url, &[], &answer.nonce, bad);
        if url == CLUSTERS {
            let now: BTreeSet<String> = self.held[CLUSTERS].keys().cloned().collect();
            let fresh: Vec<String> = now.difference(&self.endpoint_names).cloned().collect();
            let gone: Vec<String> = self.endpoint_names.difference(&now).cloned().collect();
            self.endpoint_names = now;
            if !fresh.is_empty() || !gone.is_empty() {
                let mut request = self.request(ENDPOINTS, &[], "", false);
                if let Names::Delta {
                    subscribe,
                    unsubscribe,
                    ..
                } = &mut request.names
                {
                    *subscribe = fresh;
                    unsubscribe.clone_from(&gone);
                }
                for name in gone {
                    self.held.entry(ENDPOINTS.into()).or_default().remove(&name);
                }
                requests.push(request);
            }
            // Every new or changed cluster wants to see its endpoints before the acknowledgement.
            match warming.is_empty() {
                true => requests.push(ack),
                false => self.withheld = Some((ack, warming)),
            }
        } else {
            requests.push(ack);
        }
        if url == ENDPOINTS
            && let Some((_, warming)) = &mut self.withheld
        {
            for (name, _) in &answer.resources {
                warming.remove(&**name);
            }
            for name in &answer.removed {
                warming.remove(&**name);
            }
        }
        if self.withheld.as_ref().is_some_and(|(_, w)| w.is_empty()) {
            requests.extend(self.withheld.take().map(|(ack, _)| ack));
        }
        self.check();
        requests
    }

    /// No scope without its cluster and that one's endpoints, no filter without its scope.
    fn check(&self) {
        let empty = Held::new();
        let of = |url: &str| self.held.get(url).unwrap_or(&empty);
        for (from, to) in [(SCOPES, CLUSTERS), (FILTERS, SCOPES)] {
            for (name, (_, body)) in of(from) {
                let text = String::from_utf8_lossy(body);
                let target = text.split(' ').nth(1).unwrap_or_default();
                assert!(
                    of(to).contains_key(target),
                    "{name} refers to {target}, which is not there"
                );
                let endpoints = of(ENDPOINTS).get(target);
                assert!(
                    from != SCOPES || endpoints.is_some_and(|(_, body)| body.starts_with(b"e ")),
                    "{name} refers to {target}, which has no endpoints: {endpoints:?}"
                );
            }
        }
    }
}

/// What the caller wants: scopes that point at clusters, and filter entries that point at scopes.
#[derive(Clone, Debug)]
enum Op {
    /// Scope `s` now goes to a cluster, which exists from now on; revision; whether refused.
    Scope(u8, u8, u8, bool),
    Drop(u8),
    /// Endpoints change.
    Endpoints(u8, u8),
    /// Filter entry on a scope.
    Filter(u8, u8),
    /// The Envoy takes so many responses.
    Acknowledge(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..5u8, 0..4u8, 0..3u8, prop::bool::weighted(0.2)).prop_map(|(s, c, r, b)| Op::Scope(s, c, r, b)),
        2 => (0..5u8).prop_map(Op::Drop),
        1 => (0..4u8, any::<u8>()).prop_map(|(c, r)| Op::Endpoints(c, r)),
        1 => (0..5u8, 0..3u8).prop_map(|(s, r)| Op::Filter(s, r)),
        6 => (0..3u8).prop_map(Op::Acknowledge),
    ]
}

/// The wanted world as plain data; clusters without a scope vanish, as do filter entries.
#[derive(Default)]
struct Wish {
    scopes: BTreeMap<u8, (u8, u8, bool)>,
    filters: BTreeMap<u8, u8>,
    endpoints: BTreeMap<u8, u8>,
}

impl Wish {
    fn take(&mut self, op: &Op) {
        match *op {
            Op::Scope(s, c, r, bad) => {
                self.scopes.insert(s, (c, r, bad));
            }
            Op::Drop(s) => {
                self.scopes.remove(&s);
                self.filters.remove(&s);
            }
            Op::Endpoints(c, r) => {
                self.endpoints.insert(c, r);
            }
            // A filter may stand only on a scope that is not refused, lest the reference is missing by our own doing.
            Op::Filter(s, r) => {
                self.filters.insert(s, r);
            }
            Op::Acknowledge(_) => {}
        }
        let scopes = &self.scopes;
        self.filters
            .retain(|s, _| scopes.get(s).is_some_and(|(_, _, bad)| !bad));
    }

    fn resources(&self) -> BTreeMap<(&'static str, String), Bytes> {
        let mut all = BTreeMap::new();
        for (s, (c, r, bad)) in &self.scopes {
            let word = if *bad { "bad" } else { "good" };
            all.insert((SCOPES, format!("s{s}")), format!("{word} c{c} {r}").into());
            all.insert((CLUSTERS, format!("c{c}")), Bytes::new());
            let endpoints = self.endpoints.get(c).copied().unwrap_or_default();
            all.insert(
                (ENDPOINTS, format!("c{c}")),
                format!("e {endpoints}").into(),
            );
        }
        for (s, r) in &self.filters {
            all.insert((FILTERS, format!("f{s}")), format!("f s{s} {r}").into());
        }
        all
    }
}

struct Bench {
    world: World,
    stream: Stream,
    envoy: FakeEnvoy,
    sent: BTreeSet<(String, String, u64)>,
    nacked: BTreeSet<(String, String, u64)>,
}

impl Bench {
    fn new(delta: bool) -> Self {
        let mut bench = Bench {
            world: World::new(&ORDER),
            stream: Stream::new(&ORDER, delta, Node::default()),
            envoy: FakeEnvoy {
                delta,
                ..FakeEnvoy::default()
            },
            sent: BTreeSet::new(),
            nacked: BTreeSet::new(),
        };
        for url in [CLUSTERS, SCOPES, FILTERS] {
            bench.ask(bench.envoy.request(url, &[], "", false));
        }
        bench
    }

    fn ask(&mut self, asked: Asked) {
        let view = View {
            world: &self.world,
            tailor: None,
        };
        self.stream.on_request(asked, view, Duration::ZERO);
    }

    fn poll(&mut self) {
        let view = View {
            world: &self.world,
            tailor: None,
        };
        for answer in self.stream.poll(view, Duration::ZERO) {
            if let [(name, content)] = answer.resources.as_slice() {
                let key = (
                    answer.type_url.to_string(),
                    name.to_string(),
                    content.version,
                );
                assert!(!self.nacked.contains(&key), "refused, yet sent again");
                if self.envoy.delta && refuses(&content.body) {
                    self.nacked.insert(key.clone());
                }
                self.sent.insert(key);
            }
            self.envoy.inbox.push_back(answer);
        }
    }

    fn apply(&mut self, before: &Wish, after: &Wish) {
        let (old, new) = (before.resources(), after.resources());
        let mut changes = Vec::new();
        for ((type_url, name), body) in &new {
            if old.get(&(*type_url, name.clone())) != Some(body) {
                changes.push(Change::Put {
                    type_url,
                    name: Arc::from(name.as_str()),
                    body: body.clone(),
                });
            }
        }
        for (type_url, name) in old.keys() {
            if !new.contains_key(&(*type_url, name.clone())) {
                changes.push(Change::Remove {
                    type_url,
                    name: Arc::from(name.as_str()),
                });
            }
        }
        let generation = self.world.generation + 1;
        for (kind, name) in self.world.apply(generation, changes) {
            self.stream.on_change(kind, &name);
        }
        // Another body may be tried, and the same one again after it has changed.
        self.nacked
            .retain(|(url, name, _)| !changed(&old, &new, url, name));
    }

    fn acknowledge(&mut self) {
        for asked in self.envoy.step() {
            self.ask(asked);
            self.poll();
        }
    }

    fn drain(&mut self) {
        self.poll();
        let mut rounds = 0;
        while !self.envoy.inbox.is_empty() {
            self.acknowledge();
            rounds += 1;
            assert!(rounds < 1000, "does not come to rest");
        }
    }
}

type Resources = BTreeMap<(&'static str, String), Bytes>;

fn changed(old: &Resources, new: &Resources, url: &str, name: &str) -> bool {
    let of = |all: &Resources| {
        let mut found = all.iter().filter(|((u, n), _)| *u == url && n == name);
        found.next().map(|(_, body)| body.clone())
    };
    of(old) != of(new)
}

fn run(delta: bool, ops: &[Op]) {
    let mut bench = Bench::new(delta);
    let mut wish = Wish::default();
    for op in ops {
        if let Op::Acknowledge(count) = op {
            for _ in 0..*count {
                bench.acknowledge();
            }
        } else {
            let mut next = Wish {
                scopes: wish.scopes.clone(),
                filters: wish.filters.clone(),
                endpoints: wish.endpoints.clone(),
            };
            next.take(op);
            bench.apply(&wish, &next);
            wish = next;
        }
        bench.poll();
    }
    bench.drain();
    assert!(bench.stream.quiet());
    assert_eq!(bench.stream.released, bench.world.generation);
    let refused: BTreeSet<String> = bench
        .stream
        .rejections(Duration::ZERO)
        .into_iter()
        .map(|r| r.resource)
        .collect();
    for ((url, name), body) in wish.resources() {
        let held = bench.envoy.held.get(url).and_then(|h| h.get(&name));
        if refuses(&body) {
            assert!(
                refused.contains(&name),
                "{name} is refused, but not said to be"
            );
            assert!(held.is_none_or(|(_, b)| !refuses(b)));
        } else {
            let version = hex(Content::new(body.clone()).version);
            assert_eq!(held, Some(&(version, body)), "{url} {name}");
        }
    }
    // What the last good version of a refused resource refers to may stay.
    let held = bench.envoy.held.iter().filter(|_| refused.is_empty());
    for (url, held) in held {
        for name in held.keys() {
            let wanted = wish.resources().keys().any(|(u, n)| u == url && n == name);
            assert!(wanted, "{url} {name} should be gone");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn delta_converges_in_order(ops in prop::collection::vec(op(), 0..60)) {
        run(true, &ops);
    }

    #[test]
    fn state_of_the_world_converges_in_order(ops in prop::collection::vec(op(), 0..60)) {
        run(false, &ops);
    }

    /// Whatever a client sends, the machine answers or does not, but never panics or runs for ever.
    #[test]
    fn any_request_is_survived(requests in prop::collection::vec(any_request(), 0..40), delta in any::<bool>()) {
        let mut bench = Bench::new(delta);
        let mut wish = Wish::default();
        for (index, asked) in requests.into_iter().enumerate() {
            bench.ask(asked);
            bench.poll();
            let mut next = Wish { scopes: wish.scopes.clone(), ..Wish::default() };
            let index = index as u8;
            next.take(&if index % 3 == 2 { Op::Drop(index % 5) } else { Op::Scope(index % 5, index % 4, index, false) });
            bench.apply(&wish, &next);
            wish = next;
            bench.poll();
        }
    }
}

fn any_request() -> impl Strategy<Value = Asked> {
    let name = || {
        prop::sample::select(vec!["*", "", "c0", "c1", "s0", "s1", "nope"]).prop_map(str::to_owned)
    };
    let names = move || prop::collection::vec(name(), 0..3);
    let version =
        || prop::sample::select(vec!["", "zz", "0000000000000000", "1"]).prop_map(str::to_owned);
    let delta = (
        names(),
        names(),
        prop::collection::hash_map(name(), version(), 0..3),
    )
        .prop_map(|(subscribe, unsubscribe, initial)| Names::Delta {
            subscribe,
            unsubscribe,
            initial,
        });
    let full = (names(), version()).prop_map(|(names, version)| Names::Full { names, version });
    let url = prop::sample::select(vec![CLUSTERS, ENDPOINTS, SCOPES, FILTERS, "runtime", ""]);
    let nonce =
        prop::option::of(0..12u64).prop_map(|n| n.map(|n| n.to_string()).unwrap_or_default());
    (
        url,
        nonce,
        prop::option::of(Just("no".to_owned())),
        prop_oneof![delta, full],
    )
        .prop_map(|(url, nonce, error, names)| Asked {
            node: None,
            type_url: url.to_owned(),
            nonce,
            error,
            names,
        })
}

#[test]
fn endpoints_that_go_back_to_what_is_held_while_others_are_on_their_way() {
    use Op::*;
    let ops = [
        Endpoints(3, 35),
        Scope(0, 3, 0, false),
        Acknowledge(1),
        Acknowledge(2),
        Acknowledge(1),
        Scope(0, 0, 0, false),
        Acknowledge(1),
        Scope(0, 3, 0, false),
        Endpoints(3, 0),
        Endpoints(3, 35),
    ];
    run(true, &ops);
    run(false, &ops);
}
