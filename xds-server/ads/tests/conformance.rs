//! The clauses of the xDS protocol, each by name, on a real socket, for both variants where they apply.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
mod fake;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster::EdsClusterConfig};
use fake::{
    CDS, ECDS, EDS, Envoy, LDS, SRDS, Server, closed_server, eventually, progress, put, remove,
    server, settings,
};
use prost::Message;
use seldon_ads::{Change, Engine, Node, Settings, Tailor};

/// A clause for both variants.
macro_rules! clause {
    ($(#[$doc:meta])* $name:ident, $body:ident) => {
        $(#[$doc])*
        mod $name {
            #[tokio::test]
            async fn delta() {
                super::$body(true).await;
            }
            #[tokio::test]
            async fn state_of_the_world() {
                super::$body(false).await;
            }
        }
    };
}

clause!(nothing_is_answered_before_the_first_world, before_open);
async fn before_open(delta: bool) {
    let server = closed_server(settings()).await;
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(CDS, &[]);
    envoy.subscribe("runtime", &["layer"]);
    eventually(|| server.engine.envoys().iter().any(|e| !e.types.is_empty())).await;
    assert_eq!(server.engine.progress().borrow().serving, 0);
    server.engine.apply(1, vec![put(CDS, "a", "1")]);
    assert_eq!(server.engine.envoys()[0].types[0].sent, 0);
    server.engine.open();
    assert_eq!(envoy.next().await.type_url, "runtime");
    assert_eq!(envoy.take(CDS).await.names(), ["a"]);
}

clause!(an_empty_first_request_means_everything, legacy_wildcard);
async fn legacy_wildcard(delta: bool) {
    let server = server(settings()).await;
    server
        .engine
        .apply(1, vec![put(CDS, "a", "1"), put(CDS, "b", "2")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(CDS, &[]);
    assert_eq!(envoy.take(CDS).await.names(), ["a", "b"]);
    server.engine.apply(2, vec![put(CDS, "c", "3")]);
    let got = envoy.take(CDS).await;
    assert_eq!(got.resources["c"], "3");
    assert_eq!(got.names().len(), if delta { 1 } else { 3 });
    envoy.quiet().await;
}

clause!(a_star_means_everything, star);
async fn star(delta: bool) {
    let server = server(settings()).await;
    server
        .engine
        .apply(1, vec![put(SRDS, "a", "1"), put(SRDS, "b", "2")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(SRDS, &["*"]);
    assert_eq!(envoy.take(SRDS).await.names(), ["a", "b"]);
}

clause!(everything_of_nothing_is_answered, empty);
async fn empty(delta: bool) {
    let server = server(settings()).await;
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(CDS, &[]);
    assert!(envoy.take(CDS).await.names().is_empty());
    envoy.quiet().await;
}

clause!(names_get_what_they_name, named);
async fn named(delta: bool) {
    let server = server(settings()).await;
    let world = vec![put(ECDS, "a", "1"), put(ECDS, "b", "2"), put(EDS, "c", "3")];
    server.engine.apply(1, world);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(ECDS, &["a"]);
    assert_eq!(envoy.take(ECDS).await.names(), ["a"]);
    server.engine.apply(2, vec![put(ECDS, "b", "3")]);
    envoy.quiet().await;
    envoy.subscribe(ECDS, &["b"]);
    assert_eq!(envoy.take(ECDS).await.names(), ["b"]);
}

#[tokio::test]
async fn a_missing_name_is_said_to_be_removed() {
    let server = server(settings()).await;
    let mut envoy = Envoy::connect(&server, true).await;
    envoy.subscribe(EDS, &["a"]);
    assert_eq!(envoy.take(EDS).await.removed, ["a"]);
    envoy.subscribe(ECDS, &["f"]);
    assert_eq!(envoy.take(ECDS).await.removed, ["f"]);
    server.engine.apply(1, vec![put(EDS, "a", "1")]);
    assert_eq!(envoy.take(EDS).await.names(), ["a"]);
}

#[tokio::test]
async fn missing_endpoints_are_none_in_the_state_of_the_world() {
    let server = server(settings()).await;
    let mut envoy = Envoy::connect(&server, false).await;
    envoy.subscribe(EDS, &["a"]);
    assert_eq!(envoy.take(EDS).await.resources.len(), 1);
    server.engine.apply(1, vec![put(EDS, "a", "1")]);
    assert_eq!(envoy.take(EDS).await.names(), ["a"]);
}

#[tokio::test]
async fn a_name_subscribed_to_again_is_answered_unchanged() {
    let server = server(settings()).await;
    server
        .engine
        .apply(1, vec![put(EDS, "a", "1"), put(SRDS, "s", "1")]);
    let mut envoy = Envoy::connect(&server, true).await;
    for (url, name) in [(EDS, "a"), (SRDS, "s")] {
        for _ in 0..2 {
            envoy.subscribe(url, &[name]);
            assert_eq!(envoy.take(url).await.names(), [name]);
        }
    }
}

clause!(a_name_no_longer_wanted_is_not_sent, unsubscribed);
async fn unsubscribed(delta: bool) {
    let server = server(settings()).await;
    server
        .engine
        .apply(1, vec![put(EDS, "a", "1"), put(EDS, "b", "1")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(EDS, &["a", "b"]);
    envoy.take(EDS).await;
    envoy.unsubscribe(EDS, "a");
    envoy.quiet().await;
    server
        .engine
        .apply(2, vec![put(EDS, "a", "2"), put(EDS, "b", "2")]);
    assert_eq!(envoy.take(EDS).await.names(), ["b"]);
}

#[tokio::test]
async fn a_name_dropped_under_a_star_is_sent_again() {
    let server = server(settings()).await;
    server
        .engine
        .apply(1, vec![put(SRDS, "a", "1"), put(SRDS, "b", "1")]);
    let mut envoy = Envoy::connect(&server, true).await;
    envoy.subscribe(SRDS, &["*", "a"]);
    envoy.take(SRDS).await;
    envoy.unsubscribe(SRDS, "a");
    assert_eq!(envoy.take(SRDS).await.names(), ["a"]);
    envoy.unsubscribe(SRDS, "*");
    envoy.quiet().await;
    server.engine.apply(2, vec![put(SRDS, "b", "2")]);
    envoy.quiet().await;
}

clause!(
    every_response_has_its_nonce_and_every_content_its_version,
    versions
);
async fn versions(delta: bool) {
    let server = server(settings()).await;
    let mut envoy = Envoy::connect(&server, delta).await;
    let mut seen = Vec::new();
    envoy.subscribe(LDS, &[]);
    envoy.take(LDS).await;
    for (generation, value) in [(1, "x"), (2, "y"), (3, "x")] {
        server.engine.apply(generation, vec![put(LDS, "a", value)]);
        let got = envoy.take(LDS).await;
        let version = got.versions.get("a").cloned().unwrap_or(got.version);
        seen.push((got.nonce, version));
    }
    assert_eq!(seen[0].1, seen[2].1, "the same content, the same version");
    assert_ne!(seen[0].1, seen[1].1);
    assert_ne!(seen[0].0, seen[2].0);
    // The same body again is no change.
    server.engine.apply(4, vec![put(LDS, "a", "x")]);
    envoy.quiet().await;
    progress(&server.engine, |p| p.serving == 4).await;
}

clause!(
    changes_wait_for_the_acknowledgement_and_the_latest_is_sent,
    coalesced
);
async fn coalesced(delta: bool) {
    let server = server(settings()).await;
    server.engine.apply(1, vec![put(SRDS, "a", "1")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(SRDS, &[]);
    let first = envoy.next().await;
    for generation in 2..100u64 {
        let change = put(SRDS, "a", &generation.to_string());
        server
            .engine
            .apply(generation, vec![change, put(SRDS, "gone", "1")]);
    }
    server.engine.apply(100, vec![remove(SRDS, "gone")]);
    envoy.quiet().await;
    envoy.ack(&first);
    let second = envoy.take(SRDS).await;
    assert_eq!(second.resources["a"], "99");
    assert_eq!(second.names(), ["a"], "what came and went is never sent");
    envoy.quiet().await;
    progress(&server.engine, |p| (p.serving, p.released) == (100, 100)).await;
}

clause!(
    a_stale_nonce_changes_the_subscription_and_acknowledges_nothing,
    stale
);
async fn stale(delta: bool) {
    let server = server(settings()).await;
    server
        .engine
        .apply(1, vec![put(EDS, "a", "1"), put(EDS, "b", "1")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(EDS, &["a"]);
    let first = envoy.take(EDS).await;
    server.engine.apply(2, vec![put(EDS, "a", "2")]);
    let second = envoy.next().await;
    envoy.subscribe_with(EDS, &["b"], &first.nonce);
    envoy.quiet().await;
    assert_eq!(
        server.engine.progress().borrow().serving,
        1,
        "not acknowledged"
    );
    envoy.ack(&second);
    assert_eq!(envoy.take(EDS).await.names(), ["b"]);
    progress(&server.engine, |p| p.serving == 2).await;
}

clause!(an_acknowledgement_counts_once, twice);
async fn twice(delta: bool) {
    let server = server(settings()).await;
    server.engine.apply(1, vec![put(CDS, "a", "1")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(CDS, &[]);
    let first = envoy.take(CDS).await;
    server.engine.apply(2, vec![put(CDS, "a", "2")]);
    let second = envoy.next().await;
    envoy.ack(&first);
    envoy.nack(&first, "late");
    envoy.quiet().await;
    let status = &server.engine.envoys()[0];
    assert_eq!((status.types[0].sent, status.types[0].acknowledged), (2, 1));
    assert!(status.rejections.is_empty());
    envoy.ack(&second);
    progress(&server.engine, |p| p.serving == 2).await;
}

clause!(
    additions_go_in_order_each_after_the_acknowledgement,
    additions
);
async fn additions(delta: bool) {
    let server = server(settings()).await;
    let mut envoy = Envoy::connect(&server, delta).await;
    for url in [CDS, LDS, SRDS] {
        envoy.subscribe(url, &[]);
        envoy.take(url).await;
    }
    envoy.subscribe(ECDS, &["f"]);
    if delta {
        envoy.take(ECDS).await;
    }
    envoy.quiet().await;
    let world = [put(ECDS, "f", "1"), put(SRDS, "s", "c"), put(CDS, "c", "1")];
    server.engine.apply(1, world.to_vec());
    for url in [CDS, SRDS, ECDS] {
        let got = envoy.next().await;
        assert_eq!(got.type_url, url);
        envoy.quiet().await;
        assert_eq!(server.engine.progress().borrow().serving, 0);
        envoy.ack(&got);
    }
    progress(&server.engine, |p| (p.serving, p.released) == (1, 1)).await;
}

clause!(removals_go_the_other_way_after_all_additions, removals);
async fn removals(delta: bool) {
    let server = server(settings()).await;
    let world = [
        put(CDS, "old", "1"),
        put(SRDS, "s", "old"),
        put(SRDS, "t", "old"),
    ];
    server.engine.apply(1, world.to_vec());
    let mut envoy = Envoy::connect(&server, delta).await;
    for url in [CDS, SRDS] {
        envoy.subscribe(url, &[]);
        envoy.take(url).await;
    }
    let next = [
        remove(CDS, "old"),
        remove(SRDS, "t"),
        put(CDS, "new", "1"),
        put(SRDS, "s", "new"),
    ];
    server.engine.apply(2, next.to_vec());
    let added = envoy.take(CDS).await;
    assert!(added.resources.contains_key("new") && added.removed.is_empty());
    let moved = envoy.take(SRDS).await;
    assert_eq!(moved.resources["s"], "new");
    progress(&server.engine, |p| p.serving == 2).await;
    let unscoped = envoy.next().await;
    assert_eq!(unscoped.type_url, SRDS);
    envoy.quiet().await;
    assert_eq!(server.engine.progress().borrow().released, 1);
    envoy.ack(&unscoped);
    let last = envoy.take(CDS).await;
    match delta {
        true => assert_eq!(
            (unscoped.removed, last.removed),
            (vec!["t".into()], vec!["old".into()])
        ),
        false => assert_eq!((unscoped.names(), last.names()), (vec!["s"], vec!["new"])),
    }
    progress(&server.engine, |p| p.released == 2).await;
}

clause!(
    endpoints_do_not_wait_for_their_cluster_to_be_acknowledged,
    endpoints
);
async fn endpoints(delta: bool) {
    let server = server(settings()).await;
    let world = [put(CDS, "c", "1"), put(EDS, "c", "1"), put(SRDS, "s", "c")];
    server.engine.apply(1, world.to_vec());
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(CDS, &[]);
    let cluster = envoy.next().await;
    envoy.subscribe(SRDS, &[]);
    envoy.subscribe(EDS, &["c"]);
    assert_eq!(envoy.take(EDS).await.names(), ["c"]);
    envoy.quiet().await;
    envoy.ack(&cluster);
    assert_eq!(envoy.take(SRDS).await.names(), ["s"]);
}

fn cluster(name: &str, service: &str, alt: &str) -> Change {
    let eds = EdsClusterConfig {
        service_name: service.into(),
        ..Default::default()
    };
    let message = Cluster {
        name: name.into(),
        alt_stat_name: alt.into(),
        eds_cluster_config: Some(eds),
        ..Default::default()
    };
    Change::Put {
        type_url: CDS,
        name: Arc::from(name),
        body: message.encode_to_vec().into(),
    }
}

clause!(an_updated_cluster_gets_its_endpoints_again, warmed);
async fn warmed(delta: bool) {
    let server = server(settings()).await;
    let world = [cluster("c", "e", "1"), put(EDS, "e", "1")];
    server.engine.apply(1, world.to_vec());
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(CDS, &[]);
    envoy.take(CDS).await;
    envoy.subscribe(EDS, &["e"]);
    envoy.take(EDS).await;
    server.engine.apply(2, vec![cluster("c", "e", "2")]);
    let updated = envoy.next().await;
    assert_eq!(updated.type_url, CDS);
    assert_eq!(envoy.take(EDS).await.names(), ["e"]);
    envoy.ack(&updated);
    progress(&server.engine, |p| p.released == 2).await;
    envoy.quiet().await;
}

#[tokio::test]
async fn after_a_reconnect_only_differences_are_sent() {
    let server = server(settings()).await;
    let world = [
        put(SRDS, "same", "1"),
        put(SRDS, "new", "1"),
        put(SRDS, "gone", "1"),
    ];
    server.engine.apply(1, world.to_vec());
    let mut envoy = Envoy::connect(&server, true).await;
    envoy.subscribe(SRDS, &["*"]);
    let versions = envoy.take(SRDS).await.versions;
    drop(envoy);
    server
        .engine
        .apply(2, vec![remove(SRDS, "gone"), put(SRDS, "new", "2")]);
    let mut envoy = Envoy::connect(&server, true).await;
    envoy.resume(SRDS, &versions);
    assert_eq!(envoy.take(SRDS).await.names(), ["new"]);
    let last = envoy.take(SRDS).await;
    assert_eq!(
        (last.names().len(), last.removed),
        (0, vec!["gone".to_owned()])
    );
    envoy.quiet().await;
}

#[tokio::test]
async fn after_a_reconnect_the_same_world_is_not_sent_again() {
    let server = server(settings()).await;
    server
        .engine
        .apply(1, vec![put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut envoy = Envoy::connect(&server, false).await;
    envoy.subscribe(CDS, &[]);
    let version = envoy.take(CDS).await.version;
    let mut again = Envoy::connect(&server, false).await;
    again.resume_full(CDS, &version);
    again.quiet().await;
    server.engine.apply(2, vec![put(CDS, "b", "2")]);
    assert_eq!(again.take(CDS).await.names(), ["a", "b"]);
    let mut other = Envoy::connect(&server, false).await;
    other.resume_full(CDS, &version);
    assert_eq!(other.take(CDS).await.names(), ["a", "b"]);
}

/// Acknowledges and refuses until nothing comes, refusing the bad; yields what was accepted of a type.
async fn refuse_bad(envoy: &mut Envoy, url: &str, rounds: usize) -> Vec<String> {
    let mut accepted = Vec::new();
    for _ in 0..rounds {
        let got = envoy.next().await;
        assert_eq!(got.type_url, url);
        if got.resources.values().any(|v| v == "bad") {
            envoy.nack(&got, "bad value");
        } else {
            accepted.extend(got.resources.keys().cloned());
            envoy.ack(&got);
        }
    }
    accepted
}

clause!(
    a_refused_response_is_halved_until_the_bad_one_is_alone,
    halved
);
async fn halved(delta: bool) {
    let server = server(settings()).await;
    let mut rejections = server.engine.rejections();
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(SRDS, &[]);
    envoy.take(SRDS).await;
    let name = |i: usize| format!("s{i}");
    let value = |i: usize| if i == 5 { "bad" } else { "good" };
    let world = (0..8).map(|i| put(SRDS, &name(i), value(i)));
    server.engine.apply(1, world.collect());
    // 8 refused; 4 accepted; 4 refused; 2 refused; 1 accepted; 1 refused; 2 accepted.
    let mut accepted = refuse_bad(&mut envoy, SRDS, 7).await;
    accepted.sort();
    accepted.dedup();
    assert_eq!(accepted, ["s0", "s1", "s2", "s3", "s4", "s6", "s7"]);
    progress(&server.engine, |p| p.serving == 1).await;
    let status = &server.engine.envoys()[0];
    assert_eq!(status.rejections.len(), 1);
    assert_eq!(status.rejections[0].resource, "s5");
    assert_eq!(status.rejections[0].reason, "bad value");
    let event = rejections.recv().await.unwrap();
    assert_eq!(
        (&*event.resource, event.reason.as_deref()),
        ("s5", Some("bad value"))
    );
}

clause!(
    what_was_refused_is_tried_again_only_when_it_changes,
    retried
);
async fn retried(delta: bool) {
    let server = server(settings()).await;
    let mut rejections = server.engine.rejections();
    server
        .engine
        .apply(1, vec![put(SRDS, "a", "1"), put(SRDS, "b", "1")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(SRDS, &[]);
    envoy.take(SRDS).await;
    server.engine.apply(2, vec![put(SRDS, "a", "bad")]);
    refuse_bad(&mut envoy, SRDS, 1).await;
    envoy.quiet().await;
    server.engine.apply(3, vec![put(SRDS, "b", "2")]);
    let got = envoy.take(SRDS).await;
    assert_eq!(got.resources["b"], "2");
    assert!(
        got.resources.get("a").is_none_or(|v| v == "1"),
        "last good stays"
    );
    server.engine.apply(4, vec![put(SRDS, "a", "2")]);
    assert_eq!(envoy.take(SRDS).await.resources["a"], "2");
    progress(&server.engine, |p| p.serving == 4).await;
    assert!(server.engine.envoys()[0].rejections.is_empty());
    assert!(rejections.recv().await.unwrap().reason.is_some());
    assert_eq!(rejections.recv().await.unwrap().reason, None);
}

clause!(what_the_last_good_version_refers_to_stays, outlived);
async fn outlived(delta: bool) {
    let server = server(settings()).await;
    server
        .engine
        .apply(1, vec![put(CDS, "c", "1"), put(SRDS, "s", "c")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    for url in [CDS, SRDS] {
        envoy.subscribe(url, &[]);
        envoy.take(url).await;
    }
    server
        .engine
        .apply(2, vec![remove(CDS, "c"), put(SRDS, "s", "bad")]);
    refuse_bad(&mut envoy, SRDS, 1).await;
    envoy.quiet().await;
    server.engine.apply(3, vec![put(SRDS, "s", "else")]);
    envoy.take(SRDS).await;
    let last = envoy.take(CDS).await;
    assert!(last.names().is_empty());
    assert_eq!(last.removed.len(), usize::from(delta));
}

clause!(a_slow_envoy_delays_only_itself, slow);
async fn slow(delta: bool) {
    let lag = Duration::from_millis(50);
    let server = server(Settings { lag, ..settings() }).await;
    let mut slow = Envoy::connect(&server, delta).await;
    let mut quick = Envoy::connect(&server, delta).await;
    for envoy in [&mut slow, &mut quick] {
        envoy.subscribe(CDS, &[]);
        envoy.take(CDS).await;
    }
    for generation in 1..20 {
        server
            .engine
            .apply(generation, vec![put(CDS, "a", &generation.to_string())]);
        assert_eq!(quick.take(CDS).await.resources["a"], generation.to_string());
    }
    progress(&server.engine, |p| p.serving == 19).await;
    assert_eq!(server.engine.progress().borrow().released, 0);
    let first = slow.take(CDS).await;
    assert_eq!(first.resources["a"], "1");
    assert_eq!(slow.take(CDS).await.resources["a"], "19");
    progress(&server.engine, |p| p.released == 19).await;
}

/// A server whose Envoys have a lease of this length.
async fn leased(lease: Duration) -> Server {
    server(Settings {
        lease,
        ..settings()
    })
    .await
}

clause!(a_lost_envoy_holds_back_removal_for_its_lease, lease);
async fn lease(delta: bool) {
    let lease = Duration::from_millis(300);
    let server = leased(lease).await;
    server.engine.apply(1, vec![put(CDS, "a", "1")]);
    progress(&server.engine, |p| (p.serving, p.released) == (1, 1)).await;
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(CDS, &[]);
    envoy.take(CDS).await;
    progress(&server.engine, |p| p.released == 1).await;
    drop(envoy);
    eventually(|| server.engine.envoys().iter().all(|e| !e.connected)).await;
    let lost = tokio::time::Instant::now();
    server.engine.apply(2, vec![remove(CDS, "a")]);
    progress(&server.engine, |p| p.serving == 2).await;
    assert_eq!(server.engine.progress().borrow().released, 1);
    progress(&server.engine, |p| p.released == 2).await;
    assert!(lost.elapsed() > lease / 2);
    assert!(server.engine.envoys().is_empty());
}

clause!(
    a_refusal_outlasts_the_lease_while_who_refused_may_be_back,
    silently_back
);
async fn silently_back(delta: bool) {
    let lease = Duration::from_millis(200);
    let server = leased(lease).await;
    let mut rejections = server.engine.rejections();
    server.engine.apply(1, vec![put(SRDS, "a", "1")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(SRDS, &[]);
    envoy.take(SRDS).await;
    server.engine.apply(2, vec![put(SRDS, "a", "bad")]);
    refuse_bad(&mut envoy, SRDS, 1).await;
    assert!(rejections.recv().await.unwrap().reason.is_some());
    drop(envoy);
    eventually(|| server.engine.envoys().iter().all(|e| !e.connected)).await;
    let mut again = Envoy::connect(&server, delta).await;
    again.subscribe(SRDS, &[]);
    let unanswered = again.next().await;
    eventually(|| server.engine.envoys().len() == 1).await;
    server.engine.apply(3, vec![put(CDS, "b", "1")]);
    assert!(rejections.try_recv().is_err(), "nobody has taken it back");
    again.ack(&unanswered);
    assert_eq!(rejections.recv().await.unwrap().reason, None);
}

#[tokio::test]
async fn a_new_engine_holds_back_removal_for_a_lease() {
    let lease = Duration::from_millis(200);
    let server = leased(lease).await;
    let opened = tokio::time::Instant::now();
    server.engine.apply(7, Vec::new());
    let before = *server.engine.progress().borrow();
    assert_eq!((before.serving, before.released), (7, 0));
    progress(&server.engine, |p| p.released == 7).await;
    assert!(opened.elapsed() >= lease / 2);
}

#[tokio::test]
async fn a_first_world_holds_nothing_back() {
    let engine = Engine::new(settings());
    engine.first_world();
    engine.open();
    engine.apply(7, Vec::new());
    let reached = *engine.progress().borrow();
    assert_eq!((reached.serving, reached.released), (7, 7));
}

/// Two Envoys that look alike leave; the lease of neither ends before both are back and up to date.
#[tokio::test]
async fn envoys_that_are_all_back_end_their_leases() {
    let lease = Duration::from_secs(2);
    let server = leased(lease).await;
    server.engine.apply(1, vec![put(CDS, "a", "1")]);
    progress(&server.engine, |p| p.released == 1).await;
    let mut envoys = [
        Envoy::connect(&server, true).await,
        Envoy::connect(&server, true).await,
    ];
    let mut versions = Default::default();
    for envoy in &mut envoys {
        envoy.subscribe(CDS, &["*"]);
        versions = envoy.take(CDS).await.versions;
        envoy.quiet().await;
    }
    drop(envoys);
    eventually(|| server.engine.envoys().iter().all(|e| !e.connected)).await;
    let lost = tokio::time::Instant::now();
    server.engine.apply(2, vec![put(CDS, "a", "2")]);
    let mut first = Envoy::connect(&server, true).await;
    first.resume(CDS, &versions);
    first.take(CDS).await;
    first.quiet().await;
    assert_eq!(server.engine.progress().borrow().released, 1);
    let mut second = Envoy::connect(&server, true).await;
    second.resume(CDS, &versions);
    second.take(CDS).await;
    progress(&server.engine, |p| p.released == 2).await;
    assert!(lost.elapsed() < lease, "ended early");
}

clause!(an_unknown_type_is_empty_and_harms_nothing, unknown);
async fn unknown(delta: bool) {
    let server = server(settings()).await;
    server.engine.apply(1, vec![put(CDS, "a", "1")]);
    let mut envoy = Envoy::connect(&server, delta).await;
    let runtime = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
    envoy.subscribe(runtime, &["runtime-0"]);
    let got = envoy.next().await;
    assert_eq!(got.type_url, runtime);
    assert_eq!(got.removed.len(), usize::from(delta));
    assert_eq!(got.resources.len(), usize::from(!delta), "an empty layer");
    envoy.nack(&got, "no such runtime");
    envoy.subscribe(CDS, &[]);
    assert_eq!(envoy.take(CDS).await.names(), ["a"]);
    envoy.quiet().await;
}

struct Ports;

impl Tailor for Ports {
    fn tailor(&self, node: &Node, type_url: &str, name: &str, _: &Bytes) -> Option<Bytes> {
        let port = &node.metadata["port"];
        (type_url == LDS).then(|| format!("{name}={port}").into())
    }
}

clause!(
    each_envoy_gets_its_own_though_it_names_itself_once,
    tailored
);
async fn tailored(delta: bool) {
    let tailor: Option<Arc<dyn Tailor>> = Some(Arc::new(Ports));
    let server = server(Settings {
        tailor,
        ..settings()
    })
    .await;
    server
        .engine
        .apply(1, vec![put(LDS, "l", "?"), put(CDS, "c", "1")]);
    for port in [9000, 9100] {
        let mut envoy = Envoy::connect_as(&server, delta, port).await;
        envoy.subscribe(CDS, &[]);
        assert_eq!(envoy.take(CDS).await.resources["c"], "1");
        envoy.subscribe(LDS, &[]);
        assert_eq!(envoy.take(LDS).await.resources["l"], port.to_string());
        server.engine.apply(
            u64::from(port),
            vec![put(LDS, "l", &format!("again {port}"))],
        );
        envoy.quiet().await;
        let status = server.engine.envoys().into_iter().find(|e| e.connected);
        assert_eq!(status.unwrap().node.id, "test-id");
    }
}

#[tokio::test]
async fn a_large_world_comes_in_parts() {
    let server = server(settings()).await;
    let value = "x".repeat(450);
    let world = (0..10_000).map(|i| put(SRDS, &format!("c:{i}"), &value));
    server.engine.apply(1, world.collect());
    let mut envoy = Envoy::connect(&server, true).await;
    envoy.subscribe(SRDS, &["*"]);
    let mut count = 0;
    while count < 10_000 {
        let got = envoy.take(SRDS).await;
        assert!(got.size < 4 << 20, "{} bytes", got.size);
        count += got.resources.len();
    }
    progress(&server.engine, |p| p.serving == 1).await;
}

clause!(an_engine_that_closes_ends_its_streams, closed);
async fn closed(delta: bool) {
    let server = server(settings()).await;
    let mut envoy = Envoy::connect(&server, delta).await;
    envoy.subscribe(CDS, &[]);
    envoy.take(CDS).await;
    server.engine.close();
    assert!(envoy.try_next().await.unwrap_err().contains("closing"));
}

#[tokio::test]
async fn without_envoys_every_generation_is_reached_at_once() {
    let server = server(settings()).await;
    server.engine.apply(5, vec![put(CDS, "a", "1")]);
    let reached = *server.engine.progress().borrow();
    assert_eq!((reached.serving, reached.released), (5, 5));
}

clause!(envoys_that_all_lag_have_taken_only_what_they_took, all_lag);
async fn all_lag(delta: bool) {
    let lag = Duration::from_millis(20);
    let server = server(Settings { lag, ..settings() }).await;
    server.engine.apply(1, vec![put(CDS, "a", "1")]);
    let mut slow = Envoy::connect(&server, delta).await;
    slow.subscribe(CDS, &[]);
    slow.take(CDS).await;
    progress(&server.engine, |p| p.serving == 1).await;
    server.engine.apply(2, vec![put(CDS, "a", "2")]);
    let unanswered = slow.next().await;
    tokio::time::sleep(lag * 3).await; // it lags now
    server.engine.apply(3, vec![put(CDS, "a", "3")]);
    assert_eq!(server.engine.progress().borrow().serving, 1);
    slow.ack(&unanswered);
    slow.take(CDS).await;
    progress(&server.engine, |p| p.serving == 3).await;
}

clause!(an_envoy_that_never_answers_is_cut_off, silent);
async fn silent(delta: bool) {
    let lag = Duration::from_millis(10);
    let server = server(Settings { lag, ..settings() }).await;
    server.engine.apply(1, vec![put(CDS, "a", "1")]);
    let mut silent = Envoy::connect(&server, delta).await;
    silent.subscribe(CDS, &[]);
    silent.next().await;
    // Its lease is nothing here: what it held up goes on.
    progress(&server.engine, |p| p.released == 1).await;
    assert!(silent.try_next().await.is_err());
}
