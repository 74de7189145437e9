//! How the library finds its way: seeds, the cluster document, the choice of a node, and what spans several requests.

// In a test a panic is a finding, in its helpers too.
#![allow(clippy::unwrap_used)]

mod fake;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use client::{
    Access, Client, ClientConfig, ConnectError, ControlFailure, DialError, Level, Preset, ReadFailure,
    Refusal, Reply, Request,
    wire::{ControlError, ControlRequest, NewKeyspace},
};
use fake::{Act, Asked, DEFAULT, FakeCluster, Folder, LWW, black_hole, refuse};
use ring::{ConflictPolicy, Durability, Epoch, NodeId, Token};

/// The nodes that heard requests of the data path, and how many each.
fn asked(cluster: &FakeCluster) -> Vec<usize> {
    cluster.nodes.iter().map(|node| node.requests().len()).collect()
}

fn documents(cluster: &FakeCluster) -> usize {
    let of_node = |node: &fake::FakeNode| {
        node.controls().iter().filter(|request| matches!(request, ControlRequest::Document)).count()
    };
    cluster.nodes.iter().map(of_node).sum()
}

#[tokio::test]
async fn a_dead_seed_costs_a_quarter_of_a_second() {
    let cluster = FakeCluster::start(1).await;
    let mut config = cluster.config();
    let (holes, dead): (Vec<_>, Vec<_>) = (0..2).map(|_| black_hole()).unzip();
    config.seeds.splice(0..0, dead);
    let begun = Instant::now();
    let client = Client::connect(config).await.unwrap();
    let took = begun.elapsed();
    assert!((500..900).contains(&took.as_millis()), "two dead seeds cost {took:?}");
    assert_eq!(client.access(), Access::Admin);
    drop(holes);
}

#[tokio::test]
async fn a_seed_that_fails_is_not_waited_for() {
    let cluster = FakeCluster::start(1).await;
    let mut config = cluster.config();
    config.seeds.splice(0..0, ["no-such-host.invalid:7400".to_owned()]);
    let begun = Instant::now();
    Client::connect(config).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn when_no_seed_can_be_used_the_error_says_what_happened_at_each() {
    let cluster = FakeCluster::start(2).await;
    let (hole, dead) = black_hole();
    cluster.nodes[0].script(|_| Act::Control(Err(ControlError::NotReady)));
    cluster.nodes[1].script(|_| Act::Close);
    let mut config = cluster.config();
    config.seeds.push(dead.clone());
    config.connect_timeout = Duration::from_millis(1500);
    let begun = Instant::now();
    let error = Client::connect(config).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let ConnectError::Unreachable(unreachable) = &error else { panic!("{error}") };
    let cause = |address: &str| {
        let tried = unreachable.tried.iter().find(|unreached| unreached.address == address);
        &tried.unwrap_or_else(|| panic!("{address} is not in {error}")).cause
    };
    assert_eq!(*cause(&cluster.nodes[0].address.to_string()), DialError::NoDocument(ControlError::NotReady));
    assert_eq!(*cause(&cluster.nodes[1].address.to_string()), DialError::StreamEnded);
    assert_eq!(*cause(&dead), DialError::Silent);
    let text = error.to_string();
    assert!(text.contains("the node is not ready") && text.contains(&dead) && !text.contains('\n'), "{text}");
    drop(hole);
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_on_both_sides() {
    let (cluster, other) = (FakeCluster::start(1).await, FakeCluster::start(1).await);
    let dial_error = |error| match error {
        ConnectError::Unreachable(mut unreachable) => unreachable.tried.remove(0).cause,
        other => panic!("{other}"),
    };
    let mut config = other.config();
    config.seeds = cluster.config().seeds;
    let error = dial_error(Client::connect(config).await.unwrap_err());
    assert!(matches!(error, DialError::NotTrusted { .. }), "{error}");

    // Trusts the cluster, and shows a certificate that the cluster does not trust. Its own check would refuse that, so
    // its file of authorities has both.
    let mut config = other.config();
    config.seeds = cluster.config().seeds;
    let both = [cluster.config().ca, other.config().ca].map(|path| std::fs::read_to_string(path).unwrap());
    config.ca = other.folder.path().join("both.pem");
    std::fs::write(&config.ca, both.join("\n")).unwrap();
    let error = dial_error(Client::connect(config).await.unwrap_err());
    assert!(matches!(error, DialError::CertificateRefused { .. }), "{error}");
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_is_an_error_that_names_the_file() {
    let folder = Folder::new();
    let config = ClientConfig::new(["127.0.0.1:7400".to_owned()], folder.path().join("ca.pem"), "b", "c");
    let error = Client::connect(config).await.unwrap_err();
    assert!(matches!(error, ConnectError::Material(_)) && error.to_string().contains("ca.pem"), "{error}");
    let cluster = FakeCluster::start(1).await;
    let config = ClientConfig { datacenter: Some("ber".to_owned()), ..cluster.config() };
    let error = Client::connect(config).await.unwrap_err();
    assert_eq!(error.to_string(), "the cluster has no datacenter `ber`; it has ams");
}

#[tokio::test]
async fn a_newer_epoch_in_a_reply_is_fetched_once_in_the_background() {
    let cluster = FakeCluster::start(3).await;
    let client = cluster.client().await;
    let keyspace = client.default_keyspace().unwrap();
    keyspace.put("key", "value").send().await.unwrap();
    let before = documents(&cluster);
    let epoch = cluster.change_document(|_| {});
    let reads: Vec<_> = (0..50).map(|_| tokio::spawn(keyspace.get("key").send())).collect();
    for read in reads {
        read.await.unwrap().unwrap();
    }
    let begun = Instant::now();
    while client.document().epoch != epoch {
        assert!(begun.elapsed() < Duration::from_secs(2), "still at {}", client.document().epoch);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(documents(&cluster) - before, 1);
}

#[tokio::test]
async fn an_epoch_that_nobody_can_show_does_not_stop_requests() {
    let cluster = FakeCluster::start(1).await;
    let client = cluster.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let reply = Reply::Get(Ok(keyspace_reply()));
    cluster.nodes[0].script_data(Act::ReplyUnder(Epoch(99), reply));
    for _ in 0..20 {
        keyspace.get("key").send().await.unwrap();
    }
    assert_eq!(client.document().epoch, Epoch(1));
}

fn keyspace_reply() -> client::GetReply {
    client::GetReply {
        values: Vec::new(),
        context: bytes::Bytes::new(),
        freshness: client::Freshness::default(),
        coordinator: NodeId(1),
    }
}

#[tokio::test]
async fn a_stale_epoch_makes_the_client_fetch_the_document_and_try_again() {
    let cluster = FakeCluster::start(3).await;
    let client = cluster.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let epoch = cluster.change_document(|_| {});
    let count = Arc::new(AtomicUsize::new(0));
    cluster.script(move |asked| match asked {
        Asked::Data(_) if count.fetch_add(1, Ordering::Relaxed) == 0 => {
            refuse(asked, Refusal::StaleEpoch { known: epoch })
        }
        Asked::Data(_) | Asked::Control(_) => Act::Serve,
    });
    keyspace.put("key", "value").send().await.unwrap();
    assert_eq!(client.document().epoch, epoch);
}

#[tokio::test]
async fn a_keyspace_is_unknown_only_after_a_fresh_look() {
    let cluster = FakeCluster::start(3).await;
    let client = cluster.client().await;
    let carts = client.keyspace("carts").unwrap();
    let before = documents(&cluster);
    assert_eq!(carts.get("key").send().await, Err(ReadFailure::Refused(Refusal::UnknownKeyspace)));
    assert_eq!(documents(&cluster) - before, 1);
    assert_eq!(cluster.asked(), 0);
    let new = NewKeyspace {
        name: "carts".to_owned(),
        replication: Default::default(),
        conflict: ConflictPolicy::Siblings,
        durability: Durability::Disk,
    };
    let other = cluster.client().await;
    other.create_keyspace(new.clone(), Duration::from_secs(2)).await.unwrap();
    other.create_keyspace(new, Duration::from_secs(2)).await.unwrap();
    carts.put("key", "value").send().await.unwrap();
    assert!(client.keyspace("no such name").is_err());
}

#[tokio::test]
async fn a_keyspace_that_a_node_does_not_know_yet_is_tried_elsewhere() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = cluster.client().await.default_keyspace().unwrap();
    cluster.change_document(|_| {});
    let unknown = Reply::Write(Err(Refusal::UnknownKeyspace.into()));
    let count = Arc::new(AtomicUsize::new(0));
    cluster.script(move |asked| match asked {
        Asked::Data(_) if count.fetch_add(1, Ordering::Relaxed) == 0 => {
            Act::ReplyUnder(Epoch(0), unknown.clone())
        }
        Asked::Data(_) | Asked::Control(_) => Act::Serve,
    });
    keyspace.put("key", "value").send().await.unwrap();
}

#[tokio::test]
async fn requests_go_to_the_replicas_of_their_key_and_to_all_of_them() {
    let cluster = FakeCluster::start(6).await;
    let client = cluster.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let document = client.document();
    let partition = document.partitions.of(Token::of_key(b"key"));
    let (_, rules) = document.keyspace_named("default").unwrap();
    let replicas: BTreeSet<_> =
        document.replicas(rules, partition, None).map(|replica| replica.owner.node).collect();
    for _ in 0..600 {
        keyspace.get("key").send().await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for node in &cluster.nodes {
        let count = node.requests().len();
        let is_replica = replicas.contains(&node.id);
        assert_eq!(count > 20, is_replica, "{} heard {count}, a replica: {is_replica}", node.id);
    }
}

#[tokio::test]
async fn the_clients_datacenter_is_preferred_while_it_lives() {
    let cluster = FakeCluster::start_in(6, |id| u16::from(id > 3)).await;
    let config = ClientConfig { datacenter: Some("fra".to_owned()), ..cluster.config() };
    let keyspace = Client::connect(config).await.unwrap().default_keyspace().unwrap();
    for key in 0..60 {
        keyspace.put(format!("key-{key}"), "value").send().await.unwrap();
    }
    assert_eq!(asked(&cluster)[..3], [0, 0, 0]);
    for node in &cluster.nodes[3..] {
        node.script_data(Act::Reply(Reply::Get(Err(Refusal::NotReady.into()))));
    }
    keyspace.get("key-1").send().await.unwrap();
    assert_eq!(asked(&cluster)[..3].iter().sum::<usize>(), 1);
}

#[tokio::test]
async fn a_slow_node_is_asked_less() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = cluster.client().await.default_keyspace().unwrap();
    cluster.nodes[0].script_data(Act::Later(Duration::from_millis(40), Box::new(Act::Serve)));
    for _ in 0..200 {
        keyspace.get("key").send().await.unwrap();
    }
    let asked = asked(&cluster);
    assert!(asked[0] < 20 && asked[1] > 50 && asked[2] > 50, "{asked:?}");
}

#[tokio::test]
async fn a_dead_node_is_left_alone_and_taken_back_when_it_returns() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = cluster.client().await.default_keyspace().unwrap();
    for key in 0..30 {
        keyspace.get(format!("key-{key}")).send().await.unwrap();
    }
    cluster.nodes[0].script_data(Act::Silence);
    let (begun, mut slow) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(2) {
        let one = Instant::now();
        keyspace.get("key").send().await.unwrap();
        slow += u32::from(one.elapsed() > Duration::from_millis(100));
    }
    // It is probed after 0.1 s, 0.2 s, 0.4 s and so on; each probe costs one request a quarter of a second.
    assert!((1..=5).contains(&slow), "{slow} slow requests in two seconds");
    cluster.nodes[0].script(|_| Act::Serve);
    let (heard, begun) = (cluster.nodes[0].requests().len(), Instant::now());
    while cluster.nodes[0].requests().len() < heard + 30 {
        assert!(begun.elapsed() < Duration::from_secs(6), "it has not been taken back");
        keyspace.get("key").send().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn whoever_listens_at_a_members_address_and_is_not_that_member_gets_no_requests() {
    let cluster = FakeCluster::start(2).await;
    let other = FakeCluster::start(1).await;
    let mut config = cluster.config();
    config.seeds.truncate(1);
    cluster.change_document(|document| {
        let stranger = other.nodes[0].address.to_string();
        document.members.get_mut(&NodeId(1)).unwrap().address = stranger;
        document.members.get_mut(&NodeId(2)).unwrap().address = cluster.nodes[0].address.to_string();
    });
    let client = Client::connect(config).await.unwrap();
    let wait = Duration::from_secs(1);
    // Only the seed's connection leads to node 1, and it is lost.
    cluster.nodes[0].connections()[0].close(quinn::VarInt::from_u32(0), b"");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let cause = |failure| match failure {
        ControlFailure::Unreachable(mut unreachable) => unreachable.tried.remove(0).cause,
        failure => panic!("{failure}"),
    };
    let stranger = cause(client.status(NodeId(1), wait).await.unwrap_err());
    assert!(matches!(stranger, DialError::NotTrusted { .. }), "{stranger}");
    let wrong = cause(client.status(NodeId(2), wait).await.unwrap_err());
    assert_eq!(wrong, DialError::WrongNode { found: NodeId(1) });
    let keyspace = client.default_keyspace().unwrap();
    let failure = keyspace.get("key").timeout(Duration::from_millis(300)).send().await.unwrap_err();
    assert!(matches!(failure, ReadFailure::Unreachable(_)), "{failure}");
    assert_eq!(cluster.asked() + other.asked(), 0);
}

#[tokio::test]
async fn last_write_wins_keyspaces_are_told_the_highest_version_seen() {
    let cluster = FakeCluster::start(1).await;
    let client = cluster.client().await;
    let (siblings, lww) = (client.default_keyspace().unwrap(), client.keyspace("lww").unwrap());
    lww.put("a", "1").send().await.unwrap();
    let written = lww.put("b", "1").send().await.unwrap();
    lww.put("c", "1").send().await.unwrap();
    siblings.put("d", "1").send().await.unwrap();
    let seen: Vec<_> = cluster.nodes[0]
        .requests()
        .iter()
        .map(|request| match request {
            Request::Put(put) => put.options.seen,
            other => panic!("{other:?}"),
        })
        .collect();
    let version = written.version.unwrap().counter;
    assert_eq!(seen, [None, Some(version - 1), Some(version), None]);
}

#[tokio::test]
async fn every_option_of_a_request_is_sent() {
    let cluster = FakeCluster::start(5).await;
    let keyspace = cluster.client().await.default_keyspace().unwrap();
    let before_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let put = keyspace.put("key", "value").preset(Preset::WRITE_HEAVY).durability(Durability::Memory);
    put.ttl(Duration::from_secs(60)).send().await.unwrap();
    let get = keyspace.get("key").r(Level::Three).n(4).read_repair(client::ReadRepair::Off);
    let found = get.writers_use(Level::Two).send().await.unwrap();
    assert_eq!((found.overlap.n, found.overlap.r, found.overlap.w, found.overlap.is_sure), (4, 3, 2, true));
    let requests: Vec<_> = cluster.nodes.iter().flat_map(fake::FakeNode::requests).collect();
    for request in requests {
        match request {
            Request::Put(put) => {
                assert_eq!((put.options.n, put.options.level), (Some(5), Level::Count(2)));
                assert_eq!(put.options.durability, Some(Durability::Memory));
                let expires = put.expires_unix_ms.unwrap();
                assert!((before_ms + 60_000..before_ms + 62_000).contains(&expires));
            }
            Request::Get(get) => {
                assert_eq!((get.options.n, get.options.level), (Some(4), Level::Three));
                assert_eq!(get.options.read_repair, Some(client::ReadRepair::Off));
            }
            Request::Delete(_) => panic!("nothing was deleted"),
        }
    }
}

#[tokio::test]
async fn a_change_that_cannot_be_made_says_why_and_a_node_that_is_none_is_an_error() {
    let cluster = FakeCluster::start(2).await;
    let client = cluster.client().await;
    let wait = Duration::from_secs(2);
    let lww = NewKeyspace {
        name: "default".to_owned(),
        replication: Default::default(),
        conflict: ConflictPolicy::LastWriteWins,
        durability: Durability::Disk,
    };
    let failure = client.create_keyspace(lww.clone(), wait).await.unwrap_err();
    assert_eq!(failure, ControlFailure::Refused(ControlError::KeyspaceExists));
    assert_eq!(client.readmit(NodeId(9), wait).await.unwrap_err(), ControlFailure::NoSuchNode(NodeId(9)));
    assert_eq!(client.readmit(NodeId(1), wait).await.unwrap(), Epoch(2));
    // The first node that is asked cannot say; the other can.
    cluster.nodes[0].script(|_| Act::Control(Err(ControlError::NotReady)));
    let failure = client.create_keyspace(lww, wait).await.unwrap_err();
    assert_eq!(failure, ControlFailure::Refused(ControlError::KeyspaceExists));
    assert_eq!((DEFAULT.0, LWW.0), (1, 2));
}
