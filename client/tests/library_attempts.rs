//! What the library does with one operation: which attempts it makes, and what it concludes from them.

// In a test a panic is a finding, in its helpers too.
#![allow(clippy::unwrap_used)]

mod fake;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use client::{
    Doubt, DoubtCause, GetError, KEY_BYTES_MAX, KeyspaceHandle, Limit, PutBuilder, ReadFailure, Refusal,
    Reply, Request, VALUE_BYTES_MAX, WriteFailure,
};
use fake::{Act, Asked, DEFAULT, FakeCluster, doubtful, refuse};
use ring::NodeId;

async fn keyspace(cluster: &FakeCluster) -> KeyspaceHandle {
    cluster.client().await.default_keyspace().unwrap()
}

fn put(keyspace: &KeyspaceHandle) -> PutBuilder {
    keyspace.put("key", "value").timeout(Duration::from_secs(4))
}

/// The first attempt anywhere ends like this, and all that follow are served.
fn first(cluster: &FakeCluster, act: impl Fn(&Asked) -> Act + Send + Clone + 'static) {
    let count = Arc::new(AtomicUsize::new(0));
    cluster.script(move |asked| match asked {
        Asked::Data(_) if count.fetch_add(1, Ordering::Relaxed) == 0 => act(asked),
        Asked::Data(_) | Asked::Control(_) => Act::Serve,
    });
}

#[tokio::test]
async fn a_value_that_was_put_is_found_and_a_deleted_one_is_not() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = keyspace(&cluster).await;
    let written = put(&keyspace).send().await.unwrap();
    assert!(written.overlap.is_sure && written.context.is_some());
    let found = keyspace.get("key").send().await.unwrap();
    assert_eq!(found.newest().unwrap(), "value");
    assert_eq!((found.overlap.n, found.overlap.r, found.overlap.w), (3, 2, 2));
    keyspace.delete("key").context(found.context).send().await.unwrap();
    assert_eq!(keyspace.get("key").send().await.unwrap().newest(), None);
}

#[tokio::test]
async fn a_write_that_was_refused_for_now_is_sent_again_with_the_same_id() {
    for refusal in [
        Refusal::NotReady,
        Refusal::Unavailable { required: 2, alive: 1 },
        Refusal::Overloaded(Limit::Unsynced),
        Refusal::StaleEpoch { known: ring::Epoch(1) },
        Refusal::ClockDrift { drift_ms: 700 },
    ] {
        let cluster = FakeCluster::start(3).await;
        let keyspace = keyspace(&cluster).await;
        let refused = refusal.clone();
        first(&cluster, move |asked| refuse(asked, refused.clone()));
        put(&keyspace).send().await.unwrap_or_else(|failure| panic!("{refusal}: {failure}"));
        let writes = cluster.writes();
        assert_eq!(writes.len(), 2, "{refusal}");
        assert_eq!(writes[0].1, writes[1].1, "{refusal}");
    }
}

#[tokio::test]
async fn a_write_that_was_refused_for_good_is_not_sent_again() {
    for refusal in [
        Refusal::TooLarge { size_bytes: 2, limit_bytes: 1 },
        Refusal::TooManySiblings { limit: 64 },
        Refusal::BadContext,
        Refusal::Forbidden { needs: client::Access::Write },
        Refusal::Malformed,
    ] {
        let cluster = FakeCluster::start(3).await;
        let keyspace = keyspace(&cluster).await;
        let refused = refusal.clone();
        first(&cluster, move |asked| refuse(asked, refused.clone()));
        assert_eq!(put(&keyspace).send().await, Err(WriteFailure::Refused(refusal)));
        assert_eq!(cluster.asked(), 1);
    }
}

#[tokio::test]
async fn what_no_node_would_take_is_not_sent() {
    let cluster = FakeCluster::start(1).await;
    let keyspace = keyspace(&cluster).await;
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    for (key, size, refusal) in [
        (Vec::new(), 1, Refusal::EmptyKey),
        (long, 1, Refusal::TooLarge { size_bytes: KEY_BYTES_MAX + 1, limit_bytes: KEY_BYTES_MAX }),
        (
            b"key".to_vec(),
            VALUE_BYTES_MAX + 1,
            Refusal::TooLarge { size_bytes: VALUE_BYTES_MAX + 1, limit_bytes: VALUE_BYTES_MAX },
        ),
    ] {
        assert_eq!(keyspace.put(key, vec![0; size]).send().await, Err(WriteFailure::Refused(refusal)));
    }
    assert_eq!(keyspace.get("").send().await, Err(ReadFailure::Refused(Refusal::EmptyKey)));
    assert_eq!(cluster.asked(), 0);
}

#[tokio::test]
async fn a_write_in_doubt_is_reported_and_not_sent_again() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = keyspace(&cluster).await;
    first(&cluster, |_| doubtful());
    let doubt = Doubt::Coordinator { required: 2, acknowledged: 1, cause: DoubtCause::TimedOut };
    assert_eq!(put(&keyspace).send().await, Err(WriteFailure::InDoubt(doubt)));
    assert_eq!(cluster.asked(), 1);
}

#[tokio::test]
async fn a_write_whose_connection_is_lost_is_in_doubt_at_once() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = keyspace(&cluster).await;
    first(&cluster, |_| Act::Close);
    let begun = Instant::now();
    let failure = put(&keyspace).send().await.unwrap_err();
    assert!(matches!(failure, WriteFailure::InDoubt(Doubt::ConnectionLost { .. })), "{failure}");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(cluster.asked(), 1);
}

#[tokio::test]
async fn a_write_whose_coordinator_is_silent_is_in_doubt_when_the_time_is_up() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = keyspace(&cluster).await;
    first(&cluster, |_| Act::Silence);
    let begun = Instant::now();
    let failure = put(&keyspace).timeout(Duration::from_millis(800)).send().await.unwrap_err();
    assert!(matches!(failure, WriteFailure::InDoubt(Doubt::Silent { .. })), "{failure}");
    assert!((800..1200).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(cluster.asked(), 1);
}

#[tokio::test]
async fn a_doubtful_write_is_sent_again_under_the_same_id_if_asked() {
    for act in [Act::Close, doubtful(), Act::Silence] {
        let cluster = FakeCluster::start(3).await;
        let keyspace = keyspace(&cluster).await;
        let doubtful = act.clone();
        first(&cluster, move |_| doubtful.clone());
        let begun = Instant::now();
        put(&keyspace).retry_in_doubt(true).send().await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(900), "{act:?} took {:?}", begun.elapsed());
        let writes = cluster.writes();
        assert_eq!(writes.len(), 2, "{act:?}");
        assert_eq!(writes[0].1, writes[1].1, "{act:?}");
        if !matches!(act, Act::Reply(_)) {
            assert_ne!(writes[0].0, writes[1].0, "{act:?}: the same node was asked again");
        }
    }
}

#[tokio::test]
async fn a_killed_coordinator_costs_a_retried_write_less_than_a_second() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = keyspace(&cluster).await;
    for key in 0..20 {
        keyspace.put(format!("key-{key}"), "value").send().await.unwrap();
    }
    cluster.nodes[0].kill();
    let mut longest = Duration::ZERO;
    for key in 0..40 {
        let begun = Instant::now();
        let put = keyspace.put(format!("key-{key}"), "again").retry_in_doubt(true);
        put.timeout(Duration::from_secs(4)).send().await.unwrap();
        longest = longest.max(begun.elapsed());
    }
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[tokio::test]
async fn a_refusal_after_a_doubt_leaves_the_write_in_doubt() {
    for refusal in [Refusal::BadContext, Refusal::NotReady] {
        let cluster = FakeCluster::start(3).await;
        let keyspace = keyspace(&cluster).await;
        let count = Arc::new(AtomicUsize::new(0));
        cluster.script(move |asked| match asked {
            Asked::Data(_) if count.fetch_add(1, Ordering::Relaxed) == 0 => Act::Close,
            Asked::Data(_) => refuse(asked, refusal.clone()),
            Asked::Control(_) => Act::Serve,
        });
        let put = put(&keyspace).retry_in_doubt(true).timeout(Duration::from_millis(500));
        let failure = put.send().await.unwrap_err();
        assert!(failure.is_in_doubt(), "{failure}");
        assert!(cluster.asked() >= 2);
    }
}

#[tokio::test]
async fn the_late_answer_of_a_silent_coordinator_settles_the_write() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = keyspace(&cluster).await;
    let count = Arc::new(AtomicUsize::new(0));
    cluster.script(move |asked| match asked {
        Asked::Data(_) if count.fetch_add(1, Ordering::Relaxed) == 0 => {
            Act::Later(Duration::from_millis(700), Box::new(Act::Serve))
        }
        Asked::Data(_) => Act::Silence,
        Asked::Control(_) => Act::Serve,
    });
    put(&keyspace).retry_in_doubt(true).send().await.unwrap();
}

#[tokio::test]
async fn a_read_is_asked_elsewhere_whatever_happened() {
    let timed_out = Act::Reply(Reply::Get(Err(GetError::TimedOut { required: 2, answered: 1 })));
    let not_ready = Act::Reply(Reply::Get(Err(Refusal::NotReady.into())));
    for act in [Act::Close, Act::Silence, timed_out, not_ready] {
        let cluster = FakeCluster::start(3).await;
        let keyspace = keyspace(&cluster).await;
        keyspace.put("key", "value").send().await.unwrap();
        let failed = act.clone();
        first(&cluster, move |_| failed.clone());
        let begun = Instant::now();
        let found = keyspace.get("key").send().await.unwrap();
        assert_eq!(found.newest().unwrap(), "value", "{act:?}");
        assert!(begun.elapsed() < Duration::from_millis(600), "{act:?} took {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_read_that_nobody_answers_ends_in_time_and_says_why() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = keyspace(&cluster).await;
    cluster.script(|asked| match asked {
        Asked::Data(_) => Act::Silence,
        Asked::Control(_) => Act::Serve,
    });
    let begun = Instant::now();
    let failure = keyspace.get("key").timeout(Duration::from_millis(600)).send().await.unwrap_err();
    assert!(matches!(failure, ReadFailure::Silent { .. }), "{failure}");
    assert!((600..900).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    cluster.script(|asked| refuse(asked, Refusal::Unavailable { required: 2, alive: 1 }));
    let failure = keyspace.get("key").timeout(Duration::from_millis(300)).send().await.unwrap_err();
    assert_eq!(failure, ReadFailure::Refused(Refusal::Unavailable { required: 2, alive: 1 }));
}

#[tokio::test]
async fn a_write_that_reaches_no_node_has_not_happened() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = keyspace(&cluster).await;
    for node in &cluster.nodes {
        for connection in node.connections() {
            connection.close(quinn::VarInt::from_u32(0), b"");
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.nodes.iter().for_each(fake::FakeNode::kill);
    let put = put(&keyspace).retry_in_doubt(true).timeout(Duration::from_millis(900));
    match put.send().await {
        Err(WriteFailure::Unreachable(unreachable)) => assert!(!unreachable.tried.is_empty()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_coordinator_is_told_to_give_up_before_the_caller_does() {
    let cluster = FakeCluster::start(1).await;
    let keyspace = keyspace(&cluster).await;
    put(&keyspace).timeout(Duration::from_secs(1)).send().await.unwrap();
    let Some(Request::Put(put)) = cluster.nodes[0].requests().pop() else { panic!("no put") };
    let timeout = put.options.timeout;
    assert!((900..960).contains(&timeout.as_millis()), "{timeout:?}");
}

#[tokio::test]
async fn replies_find_their_requests_in_whatever_order_they_come() {
    let cluster = FakeCluster::start(1).await;
    let keyspace = keyspace(&cluster).await;
    for key in 0..50 {
        keyspace.put(format!("key-{key}"), format!("value-{key}")).send().await.unwrap();
    }
    // The first is answered last.
    let mut wait_ms = 100;
    cluster.nodes[0].script(move |_| {
        wait_ms -= 2;
        Act::Later(Duration::from_millis(wait_ms), Box::new(Act::Serve))
    });
    let reads: Vec<_> = (0..50)
        .map(|key| {
            let get = keyspace.get(format!("key-{key}"));
            tokio::spawn(async move { (key, get.send().await.unwrap()) })
        })
        .collect();
    for read in reads {
        let (key, found) = read.await.unwrap();
        assert_eq!(found.newest().unwrap(), &format!("value-{key}"));
    }
}

#[tokio::test]
async fn requests_that_are_made_together_are_written_together() {
    let cluster = FakeCluster::start(1).await;
    let keyspace = keyspace(&cluster).await;
    keyspace.put("key", "value").send().await.unwrap();
    let connection = cluster.nodes[0].connections().pop().unwrap();
    let frames_before = connection.stats().frame_rx.stream;
    let reads: Vec<_> = (0..200)
        .map(|_| {
            let get = keyspace.get("key");
            tokio::spawn(get.send())
        })
        .collect();
    for read in reads {
        read.await.unwrap().unwrap();
    }
    let frames = connection.stats().frame_rx.stream - frames_before;
    assert_eq!(cluster.asked(), 201);
    // A request takes some 50 bytes, so 200 of them take some 8 packets.
    assert!(frames < 40, "{frames} frames for 200 requests");
}

/// So many puts at once, each tried once: how many were refused.
async fn refused_of(keyspace: &KeyspaceHandle, count: usize) -> usize {
    let puts: Vec<_> = (0..count).map(|_| tokio::spawn(put(keyspace).attempts(1).send())).collect();
    let mut refused = 0;
    for put in puts {
        match put.await.unwrap() {
            Ok(_) => {}
            Err(WriteFailure::Refused(Refusal::Overloaded(Limit::Requests))) => refused += 1,
            Err(failure) => panic!("{failure}"),
        }
    }
    refused
}

#[tokio::test]
async fn what_a_node_has_too_much_of_is_held_back_for_a_while() {
    let cluster = FakeCluster::start(1).await;
    let keyspace = keyspace(&cluster).await;
    cluster.script(|asked| refuse(asked, Refusal::Overloaded(Limit::Requests)));
    assert_eq!(refused_of(&keyspace, 100).await, 100);
    assert_eq!(cluster.asked(), 100, "nothing was known");
    cluster.nodes[0].script_data(Act::Later(Duration::from_millis(100), Box::new(Act::Serve)));
    let began = Instant::now();
    let refused = refused_of(&keyspace, 50).await;
    assert!(began.elapsed() < Duration::from_millis(700), "too slow to find out anything");
    assert_eq!((refused, cluster.asked()), (34, 116));
    let gets: Vec<_> = (0..50).map(|_| tokio::spawn(keyspace.get("key").send())).collect();
    for get in gets {
        get.await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(refused_of(&keyspace, 50).await, 0, "it has refused nothing for a while");
}

#[tokio::test]
async fn dropping_an_operation_leaves_nothing_behind() {
    let cluster = FakeCluster::start(1).await;
    let keyspace = keyspace(&cluster).await;
    cluster.nodes[0].script_data(Act::Silence);
    for _ in 0..100 {
        let get = keyspace.get("key").send();
        assert!(tokio::time::timeout(Duration::from_millis(2), get).await.is_err());
    }
    cluster.nodes[0].script(|_| Act::Serve);
    assert_eq!(keyspace.get("key").send().await.unwrap().newest(), None);
    assert_eq!(cluster.shared.store.lock().unwrap().values(DEFAULT, b"key"), []);
    assert_eq!(cluster.nodes[0].id, NodeId(1));
}
