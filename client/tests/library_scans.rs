//! What the library makes of several requests: updates, and listings of keys.

// In a test a panic is a finding, in its helpers too.
#![allow(clippy::unwrap_used)]

mod fake;

use std::{collections::BTreeSet, time::Duration};

use client::{
    Client, KeysFailure, Refusal, Reply, Request, ReturnedValue, UpdateFailure, WriteFailure, WriteReply,
    wire::{ControlError, ControlReply, ControlRequest, KeysPage},
};
use fake::{Act, Asked, FakeCluster};
use ring::{NodeId, Token};

/// The elements of all siblings, and one more.
fn with(element: &str) -> impl FnMut(&[ReturnedValue]) -> String + use<> {
    let element = element.to_owned();
    move |siblings| {
        let mut elements: BTreeSet<String> = BTreeSet::from([element.clone()]);
        for value in siblings {
            elements.extend(String::from_utf8_lossy(&value.bytes).split(' ').map(str::to_owned));
        }
        elements.into_iter().collect::<Vec<_>>().join(" ")
    }
}

#[tokio::test]
async fn updates_that_meet_lose_nothing() {
    let cluster = FakeCluster::start(3).await;
    let keyspace = cluster.client().await.default_keyspace().unwrap();
    let updates: Vec<_> = (0..8)
        .map(|index| {
            let update = keyspace.update("set", with(&format!("e{index}"))).timeout(Duration::from_secs(5));
            tokio::spawn(update.rounds(50).send())
        })
        .collect();
    for update in updates {
        update.await.unwrap().unwrap();
    }
    let found = keyspace.get("set").send().await.unwrap();
    assert_eq!(found.values.len(), 1, "the last to finish had seen everything");
    assert_eq!(found.newest().unwrap(), "e0 e1 e2 e3 e4 e5 e6 e7");
}

#[tokio::test]
async fn an_update_gives_up_after_its_rounds_and_refuses_last_write_wins() {
    let cluster = FakeCluster::start(1).await;
    let client = cluster.client().await;
    let written = WriteReply {
        version: None,
        context: None,
        required: 2,
        acknowledged: 2,
        stood_in: 0,
        coordinator: NodeId(1),
    };
    cluster.nodes[0].script(move |asked| match asked {
        Asked::Data(Request::Put(_)) => Act::Reply(Reply::Write(Ok(written.clone()))),
        Asked::Data(_) | Asked::Control(_) => Act::Serve,
    });
    let keyspace = client.default_keyspace().unwrap();
    let failure = keyspace.update("set", with("e")).rounds(3).send().await.unwrap_err();
    assert_eq!(failure, UpdateFailure::Conflicts { rounds: 3 });
    let lww = client.keyspace("lww").unwrap();
    assert_eq!(lww.update("set", with("e")).send().await.unwrap_err(), UpdateFailure::LastWriteWins);
    let missing = client.keyspace("missing").unwrap().update("set", with("e")).send().await;
    let unknown = WriteFailure::Refused(Refusal::UnknownKeyspace);
    assert_eq!(missing.unwrap_err(), UpdateFailure::Write(unknown));
}

async fn fill(cluster: &FakeCluster, count: usize) -> BTreeSet<Vec<u8>> {
    let keyspace = cluster.client().await.default_keyspace().unwrap();
    let keys: BTreeSet<_> = (0..count).map(|index| format!("key-{index}").into_bytes()).collect();
    for key in &keys {
        keyspace.put(key.clone(), "value").send().await.unwrap();
    }
    keys
}

async fn list(client: &Client) -> Result<Vec<Vec<u8>>, KeysFailure> {
    let mut scan = client.default_keyspace().unwrap().keys().timeout(Duration::from_millis(600));
    let mut keys = Vec::new();
    while let Some(key) = scan.next().await? {
        keys.push(key.to_vec());
    }
    let (listed, total) = scan.progress();
    assert_eq!((listed, total), (64, 64));
    Ok(keys)
}

#[tokio::test]
async fn every_key_is_listed_once_in_the_order_of_tokens() {
    let cluster = FakeCluster::start(4).await;
    let expected = fill(&cluster, 700).await;
    let keys = list(&cluster.client().await).await.unwrap();
    assert_eq!(keys.len(), 700);
    assert!(keys.is_sorted_by_key(|key| Token::of_key(key)));
    assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn a_key_that_only_one_of_the_replicas_asked_knows_is_listed() {
    let cluster = FakeCluster::start(3).await;
    let expected = fill(&cluster, 200).await;
    // Each node has forgotten two keys of five, none of them all the same.
    for (index, node) in cluster.nodes.iter().enumerate() {
        let shared = cluster.shared.clone();
        let id = node.id;
        node.script(move |asked| match asked {
            Asked::Control(request @ ControlRequest::Keys { .. }) => {
                let Ok(ControlReply::Keys(mut page)) = shared.control(id, request.clone()) else { panic!() };
                page.keys.retain(|key| key.last().unwrap() % 3 != u8::try_from(index).unwrap());
                Act::Control(Ok(ControlReply::Keys(page)))
            }
            Asked::Data(_) | Asked::Control(_) => Act::Serve,
        });
    }
    let keys = list(&cluster.client().await).await.unwrap();
    assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn a_filling_copy_and_a_dead_node_are_replaced_in_a_listing() {
    let filling =
        Act::Control(Ok(ControlReply::Keys(KeysPage { keys: Vec::new(), is_whole: false, next: None })));
    for act in [filling, Act::Close, Act::Control(Err(ControlError::NotOwner))] {
        let cluster = FakeCluster::start(3).await;
        let expected = fill(&cluster, 100).await;
        cluster.nodes[1].script(move |asked| match asked {
            Asked::Control(ControlRequest::Keys { .. }) => act.clone(),
            Asked::Data(_) | Asked::Control(_) => Act::Serve,
        });
        let keys = list(&cluster.client().await).await.unwrap();
        assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

#[tokio::test]
async fn a_partition_that_too_few_replicas_can_list_fails_the_listing() {
    let cluster = FakeCluster::start(3).await;
    let filling = ControlReply::Keys(KeysPage { keys: Vec::new(), is_whole: false, next: None });
    for node in &cluster.nodes[1..] {
        let filling = filling.clone();
        node.script(move |asked| match asked {
            Asked::Control(ControlRequest::Keys { .. }) => Act::Control(Ok(filling.clone())),
            Asked::Data(_) | Asked::Control(_) => Act::Serve,
        });
    }
    let failure = list(&cluster.client().await).await.unwrap_err();
    assert!(matches!(failure, KeysFailure::TooFewReplicas { required: 2, .. }), "{failure}");
}
