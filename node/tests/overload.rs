//! More than a node can take: what is beyond is refused at once, and what was taken is done.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod machines;
mod settings;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use client::{Limit, Refusal, WriteFailure};
use machines::{Machines, network::Weather};
use ring::NodeId;

/// Requests that arrive together.
const BURST: usize = 2000;
/// How many of them a node takes at the least.
const TAKEN_MIN: usize = 256;

/// Disks that need a second for each sync fill a node with requests that wait. The others of a burst are refused while
/// those wait.
#[test]
fn what_is_too_much_is_refused_at_once() {
    let Some(machines) = Machines::started(3, "") else { return };
    if let Err(reason) = &machines.can_fail_syncs {
        return eprintln!("SKIPPED, NOTHING WAS TESTED: {reason}");
    }
    machines.block_on(async {
        let client = machines.client().await;
        let keyspace = client.default_keyspace().unwrap();
        // All requests go to the first node.
        let cut = BTreeSet::from([(0, 2), (0, 3), (2, 0), (3, 0)]);
        machines.switch.set(Weather { cut, ..Weather::default() });
        let (mut number, mut in_a_row) = (0, 0);
        let began = Instant::now();
        while in_a_row < 100 {
            let put = keyspace.put(format!("warm-{number}"), "up").timeout(Duration::from_secs(5)).attempts(1).send().await;
            let is_first = put.is_ok_and(|put| put.coordinator == NodeId(1));
            (number, in_a_row) = (number + 1, if is_first { in_a_row + 1 } else { 0 });
            assert!(began.elapsed() < Duration::from_secs(30), "the client does not settle on the one it reaches");
        }
        for machine in &machines.machines {
            machine.lock().set_syncs(Some("1000"));
        }
        let put = |number: usize| {
            let put = keyspace.put(format!("key-{number}"), "value").timeout(Duration::from_secs(10)).attempts(1);
            async move {
                let sent = Instant::now();
                (put.send().await, sent.elapsed())
            }
        };
        let puts: Vec<_> = (0..BURST).map(|number| tokio::task::spawn_local(put(number))).collect();
        let (mut refused, mut done) = (Vec::new(), Vec::new());
        for put in puts {
            match put.await.unwrap() {
                (Ok(_), took) => done.push(took),
                (Err(WriteFailure::Refused(Refusal::Overloaded(Limit::Requests))), took) => refused.push(took),
                (Err(error), took) => panic!("{error} after {took:?}"),
            }
        }
        refused.sort_unstable();
        done.sort_unstable();
        let quantile = |of: &[Duration], permille: usize| of[(of.len() * permille / 1000).min(of.len() - 1)];
        eprintln!(
            "{} done, half of them within {:?}; {} refused, half of them within {:?}, 99 of a hundred within {:?}",
            done.len(),
            quantile(&done, 500),
            refused.len(),
            quantile(&refused, 500),
            quantile(&refused, 990)
        );
        assert!(done.len() >= TAKEN_MIN && refused.len() >= BURST / 4);
        assert!(done[0] > Duration::from_millis(900), "they wait for their disks");
        // The whole burst has to be made and sent by one thread of a busy machine first.
        assert!(quantile(&refused, 990) < Duration::from_millis(500));
        // It is over as soon as there is room.
        for machine in &machines.machines {
            machine.lock().set_syncs(None);
        }
        let after = keyspace.put("after", "value").timeout(Duration::from_secs(5)).attempts(1).send().await;
        after.unwrap();
        client.close().await;
    });
}
