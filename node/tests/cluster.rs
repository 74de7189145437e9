//! Clusters of real processes on real disks and sockets: what a user does in the first ten minutes.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

mod running;
mod settings;

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use bytes::Bytes;
use client::{
    GetError, Level, LevelError, Preset, ReadFailure, Refusal, WriteError, WriteFailure,
    wire::{CopyState, NewKeyspace},
};
use node::shell::dev::Mode;
use ring::{ConflictPolicy, Durability, NodeId};
use running::{ByHand, Running, eventually};

const TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn what_is_written_at_any_level_is_read_at_any_other() {
    let running = Running::threads(3);
    let client = running.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let levels = [
        Level::One,
        Level::Two,
        Level::Three,
        Level::Quorum,
        Level::All,
        Level::LocalOne,
        Level::LocalQuorum,
        Level::EachQuorum,
        Level::Count(2),
    ];
    for (number, w) in levels.into_iter().chain([Level::Any]).enumerate() {
        for durability in [Durability::Disk, Durability::Memory] {
            let key = format!("key-{number}-{durability:?}");
            let written =
                keyspace.put(key.clone(), "value").w(w).durability(durability).send().await.unwrap();
            assert!(written.acknowledged >= written.required, "{w} {durability:?}");
            for r in levels {
                let found = keyspace.get(key.clone()).r(r).n(3).send().await.unwrap();
                // What overlaps has to be there; what does not may be, and on three idle nodes soon is.
                if keyspace.overlap(Some(3), r, w).unwrap().is_sure {
                    assert_eq!(found.values.len(), 1, "written at {w}, read at {r}");
                    assert_eq!(found.values[0].bytes, "value");
                }
            }
        }
    }
}

#[tokio::test]
async fn concurrent_values_stand_side_by_side_until_a_write_that_saw_them() {
    let running = Running::threads(3);
    let client = running.client().await;
    let carts = client.default_keyspace().unwrap();
    for value in ["book", "pen"] {
        carts.put("cart", value).send().await.unwrap();
    }
    let found = carts.get("cart").send().await.unwrap();
    let mut values: Vec<&Bytes> = found.values.iter().map(|value| &value.bytes).collect();
    values.sort();
    assert_eq!(values, ["book", "pen"]);
    carts.put("cart", "book and pen").context(found.context).send().await.unwrap();
    let found = carts.get("cart").send().await.unwrap();
    assert_eq!(found.values.len(), 1);
    assert_eq!(found.values[0].bytes, "book and pen");
    assert!(found.freshness.agreed && found.overlap.is_sure);
    carts.delete("cart").context(found.context).send().await.unwrap();
    assert!(carts.get("cart").send().await.unwrap().values.is_empty());
}

#[tokio::test]
async fn what_cannot_be_is_refused_at_once_and_leaves_nothing_behind() {
    let running = Running::threads(3);
    let client = running.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let refusal = |failure: WriteFailure| match failure {
        WriteFailure::Refused(refusal) => refusal,
        other => panic!("{other}"),
    };
    let put = |key: Vec<u8>, value: Vec<u8>| keyspace.put(key, value);
    assert_eq!(refusal(put(vec![], vec![1]).send().await.unwrap_err()), Refusal::EmptyKey);
    let too_large = refusal(put(vec![b'k'; 4097], vec![1]).send().await.unwrap_err());
    assert!(matches!(too_large, Refusal::TooLarge { limit_bytes: 4096, .. }), "{too_large}");
    let too_large = refusal(put(vec![b'k'], vec![1; (4 << 20) + 1]).send().await.unwrap_err());
    assert!(matches!(too_large, Refusal::TooLarge { .. }), "{too_large}");
    let unmet = refusal(put(vec![b'k'], vec![1]).w(Level::Count(4)).send().await.unwrap_err());
    assert_eq!(unmet, Refusal::Unsatisfiable(LevelError::TooMany { required: 4, copies: 3 }));
    let unmet = keyspace.get("k").preset(Preset::STRONG).send().await.unwrap_err();
    assert_eq!(unmet, ReadFailure::Refused(Refusal::BadCopies { asked: 5, possible: 3 }));
    let nowhere = client.keyspace("nowhere").unwrap();
    assert_eq!(refusal(nowhere.put("k", "v").send().await.unwrap_err()), Refusal::UnknownKeyspace);
    keyspace.put("other", "v").send().await.unwrap();
    let foreign = keyspace.get("other").send().await.unwrap().context;
    let refused = refusal(put(vec![b'k'], vec![1]).context(foreign).send().await.unwrap_err());
    assert_eq!(refused, Refusal::BadContext);
    for node in 1..=3 {
        let (keyspace, _) =
            client.document().keyspace_named("default").map(|(id, found)| (id, found.clone())).unwrap();
        let view = client.explain(NodeId(node), keyspace, "k", TIMEOUT).await.unwrap();
        assert_eq!(view.record, None, "nothing of it may be anywhere");
        assert_ne!(view.copy, CopyState::None);
    }
    // The largest that is allowed is allowed.
    let key = vec![b'k'; 4096];
    put(key.clone(), vec![7; 4 << 20]).timeout(TIMEOUT).send().await.unwrap();
    let found = keyspace.get(key).timeout(TIMEOUT).send().await.unwrap();
    assert_eq!(found.values[0].bytes, vec![7; 4 << 20]);
}

#[tokio::test]
async fn a_new_keyspace_is_usable_everywhere_as_soon_as_it_is_created() {
    let running = Running::threads(3);
    let client = running.client().await;
    let sessions = NewKeyspace {
        name: "sessions".to_owned(),
        replication: BTreeMap::from([("local".to_owned(), 2)]),
        conflict: ConflictPolicy::LastWriteWins,
        durability: Durability::Memory,
    };
    let (id, epoch) = client.create_keyspace(sessions.clone(), TIMEOUT).await.unwrap();
    assert_eq!(
        client.create_keyspace(sessions.clone(), TIMEOUT).await.unwrap().0,
        id,
        "asking again is safe"
    );
    let other = NewKeyspace { durability: Durability::Disk, ..sessions };
    assert!(client.create_keyspace(other, TIMEOUT).await.is_err());
    for node in 1..=3 {
        assert!(client.status(NodeId(node), TIMEOUT).await.unwrap().epoch >= epoch);
    }
    let keyspace = client.keyspace("sessions").unwrap();
    for value in ["first", "second"] {
        keyspace.put("key", value).w(Level::All).send().await.unwrap();
    }
    let found = keyspace.get("key").r(Level::All).send().await.unwrap();
    assert_eq!((found.values.len(), found.freshness.asked), (1, 2));
    assert_eq!(found.values[0].bytes, "second");
}

#[tokio::test]
async fn a_killed_node_costs_no_quorum_request_and_comes_back_with_everything() {
    let running = Running::processes(3);
    let client = running.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let write = |range: std::ops::Range<u32>| {
        let keyspace = keyspace.clone();
        async move {
            for number in range {
                let put = keyspace.put(format!("key-{number}"), number.to_string()).retry_in_doubt(true);
                put.timeout(TIMEOUT).send().await.unwrap_or_else(|error| panic!("key {number}: {error}"));
            }
        }
    };
    write(0..100).await;
    running.kill(2);
    write(100..200).await;
    for number in 0..200 {
        let found = keyspace.get(format!("key-{number}")).timeout(TIMEOUT).send().await.unwrap();
        assert_eq!(found.values[0].bytes, number.to_string());
    }
    let _node = ByHand::run(&running.options.node_config(2));
    eventually("the node is back and answers at `all`", Duration::from_secs(20), || async {
        keyspace.get("key-199").r(Level::All).send().await.is_ok_and(|found| found.freshness.answered == 3)
    })
    .await;
    for number in 0..200 {
        let found =
            keyspace.get(format!("key-{number}")).r(Level::All).timeout(TIMEOUT).send().await.unwrap();
        assert_eq!(found.values.len(), 1, "key {number}");
        assert_eq!(found.values[0].bytes, number.to_string());
    }
}

/// Its peers speak to the process before it, and are told that it is gone: they do not wait until its silence tells.
#[tokio::test]
async fn a_node_that_is_killed_and_started_at_once_is_connected_at_once() {
    let running = Running::processes(3);
    let client = running.client().await;
    let peers_lost = || {
        let lost = |line: &&str| line.contains("disconnected from a peer") && line.contains("peer=3");
        [1, 2].map(|node| running.log(node).lines().filter(lost).map(str::to_owned).collect::<Vec<_>>())
    };
    let is_well = || async {
        let Ok(status) = client.status(NodeId(3), TIMEOUT).await else { return false };
        status.is_ready
            && status.copies == status.copies_whole
            && status.peers.iter().all(|peer| peer.is_up)
            && peers_lost().iter().all(|lost| !lost.is_empty())
    };
    running.kill(3);
    let _process = ByHand::run(&running.options.node_config(3));
    eventually("it is a member like any other", Duration::from_secs(20), is_well).await;
    // The former process's connections end because the new one resets them, and not by the silence of an idle timeout.
    for lost in peers_lost() {
        assert!(lost.iter().all(|line| line.contains("reset by peer")), "{lost:?}");
    }
    client.close().await;
}

#[tokio::test]
async fn too_few_nodes_are_a_definite_refusal_and_one_is_enough_at_one() {
    let running = Running::processes(3);
    let client = running.client().await;
    let keyspace = client.default_keyspace().unwrap();
    keyspace.put("key", "value").w(Level::All).send().await.unwrap();
    running.kill(1);
    running.kill(3);
    eventually("the last node has noticed", Duration::from_secs(10), || async {
        let refused = keyspace.put("key", "other").send().await;
        matches!(refused, Err(WriteFailure::Refused(Refusal::Unavailable { required: 2, alive: 1 })))
    })
    .await;
    let found = keyspace.get("key").r(Level::One).send().await.unwrap();
    assert!(found.values.iter().any(|value| value.bytes == "value"));
    let refused = keyspace.get("key").r(Level::Quorum).send().await.unwrap_err();
    assert!(matches!(refused, ReadFailure::Refused(Refusal::Unavailable { .. })), "{refused}");
    // Whoever sends clients to nodes that are ready has this one left. One that starts now has met nobody yet.
    assert_eq!(ready(&running.options.node_config(2)), (Some(0), "ready\n".to_owned()));
    running.kill(2);
    let _process = ByHand::run(&running.options.node_config(2));
    eventually("it answers", Duration::from_secs(10), || async {
        let (code, said) = ready(&running.options.node_config(2));
        assert_ne!(code, Some(0), "{said}");
        said.contains("has just started")
    })
    .await;
}

/// What `quorated health --ready` ends with, and says.
fn ready(config: &Path) -> (Option<i32>, String) {
    let mut health = Command::new(env!("CARGO_BIN_EXE_quorated"));
    let health = health.args(["health", "--ready", "--config"]).arg(config).output().unwrap();
    let said = [health.stdout, health.stderr].concat();
    (health.status.code(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn a_cluster_that_stops_and_starts_has_its_data_and_its_keyspaces() {
    let mode = Mode::Processes { program: env!("CARGO_BIN_EXE_quorated").into() };
    let mut running = Running::processes(3);
    let client = running.client().await;
    let spec = NewKeyspace {
        name: "more".to_owned(),
        replication: BTreeMap::new(),
        conflict: ConflictPolicy::Siblings,
        durability: Durability::Disk,
    };
    client.create_keyspace(spec, TIMEOUT).await.unwrap();
    client.keyspace("more").unwrap().put("key", "value").w(Level::All).send().await.unwrap();
    client.close().await;
    running.restart(&mode);
    let client = running.client().await;
    let found = client.keyspace("more").unwrap().get("key").r(Level::All).send().await.unwrap();
    assert_eq!(found.values[0].bytes, "value");
    for node in 1..=3 {
        let status = client.status(NodeId(node), TIMEOUT).await.unwrap();
        assert_eq!(status.copies, status.copies_whole, "a stop in good order costs no copy");
    }
}

#[test]
fn errors_of_the_protocol_read_as_sentences() {
    let refused = WriteError::Refused(Refusal::Unavailable { required: 2, alive: 1 });
    assert_eq!(refused.to_string(), "refused: unavailable: 2 replicas are required and 1 are alive");
    let refused = GetError::Refused(Refusal::UnknownKeyspace);
    assert_eq!(refused.to_string(), "refused: no such keyspace");
}
