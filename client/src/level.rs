//! Consistency levels: how many replicas have to answer, and among which.
//!
//! A level is a name; what it requires follows from the copies that the request asked for. The same function serves
//! the client, which shows whether a read and a write overlap, and the coordinator, which counts answers.

use std::{fmt, str::FromStr};

use ring::DatacenterId;
use smallvec::SmallVec;
use thiserror::Error;

/// A consistency level of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Writes only: one node of the partition's preference list, whether a replica of the request or one that stands in
    /// for it and hands it over later.
    Any,
    /// One replica, in any datacenter.
    One,
    /// Two replicas, in any datacenters.
    Two,
    /// Three replicas, in any datacenters.
    Three,
    /// A majority of all replicas.
    #[default]
    Quorum,
    /// Every replica.
    All,
    /// One replica in the coordinator's datacenter.
    LocalOne,
    /// A majority of the replicas in the coordinator's datacenter.
    LocalQuorum,
    /// A majority of the replicas in each datacenter.
    EachQuorum,
    /// So many replicas, in any datacenters.
    Count(u8),
}

/// What kind of request a level is for: [`Level::Any`] is for writes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A get.
    Read,
    /// A put or a delete.
    Write,
}

/// The copies that a request asked for: how many in each datacenter that has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    counts: SmallVec<[(DatacenterId, u8); 4]>,
}

/// What a level requires of a request's copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Required {
    /// So many of them, wherever they are.
    Anywhere(u8),
    /// So many of those in each of these datacenters.
    In(Vec<(DatacenterId, u8)>),
}

/// Why a level cannot be met, however many nodes are up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LevelError {
    /// More replicas are required than the request has copies.
    #[error("the level requires {required} replicas and the request has {copies} copies")]
    TooMany {
        /// What the level requires.
        required: u8,
        /// What the request has.
        copies: u8,
    },
    /// A count of zero would acknowledge what no replica has.
    #[error("a level of zero replicas promises nothing")]
    Zero,
    /// [`Level::Any`] on a read.
    #[error("level `any` is for writes alone")]
    AnyOnRead,
    /// A local level where the coordinator's datacenter holds no copies.
    #[error("the keyspace has no copies in the coordinator's datacenter")]
    NoLocalCopies,
}

impl Level {
    /// What this level requires of `copies` when the coordinator sits in `local`.
    ///
    /// # Errors
    ///
    /// When no number of live nodes could meet it; see [`LevelError`].
    pub fn required(
        self,
        operation: Operation,
        copies: &Copies,
        local: DatacenterId,
    ) -> Result<Required, LevelError> {
        let anywhere = |required: u8| match required {
            0 => Err(LevelError::Zero),
            _ if required > copies.total() => Err(LevelError::TooMany { required, copies: copies.total() }),
            _ => Ok(Required::Anywhere(required)),
        };
        let in_local = |of: fn(u8) -> u8| match copies.in_datacenter(local) {
            0 => Err(LevelError::NoLocalCopies),
            count => Ok(Required::In(vec![(local, of(count))])),
        };
        match self {
            Level::Any if operation == Operation::Read => Err(LevelError::AnyOnRead),
            Level::Any | Level::One => anywhere(1),
            Level::Two => anywhere(2),
            Level::Three => anywhere(3),
            Level::Quorum => anywhere(majority(copies.total())),
            Level::All => anywhere(copies.total()),
            Level::LocalOne => in_local(|_| 1),
            Level::LocalQuorum => in_local(majority),
            Level::EachQuorum => {
                Ok(Required::In(copies.counts.iter().map(|&(name, count)| (name, majority(count))).collect()))
            }
            Level::Count(count) => anywhere(count),
        }
    }
}

/// More than half of `count`.
fn majority(count: u8) -> u8 {
    count / 2 + 1
}

impl Required {
    /// How many replicas have to answer in all.
    #[must_use]
    pub fn total(&self) -> u8 {
        match self {
            Required::Anywhere(count) => *count,
            Required::In(counts) => counts.iter().map(|(_, count)| count).sum(),
        }
    }

    /// How many of the replicas in `datacenter` are sure to be among those that answered.
    fn at_least_in(&self, datacenter: DatacenterId, copies: &Copies) -> u8 {
        match self {
            Required::Anywhere(count) => {
                count.saturating_sub(copies.total() - copies.in_datacenter(datacenter))
            }
            Required::In(counts) => {
                counts.iter().find(|(name, _)| *name == datacenter).map_or(0, |(_, count)| *count)
            }
        }
    }
}

/// Whether a read is sure to ask a replica that acknowledged the write: R + W > N, in all or in one datacenter.
#[must_use]
pub fn overlaps(copies: &Copies, write: &Required, read: &Required) -> bool {
    u16::from(write.total()) + u16::from(read.total()) > u16::from(copies.total())
        || copies.counts.iter().any(|&(datacenter, count)| {
            let surely = write.at_least_in(datacenter, copies) + read.at_least_in(datacenter, copies);
            surely > count
        })
}

impl Copies {
    /// Copies from their count in each datacenter; datacenters without any are left out.
    #[must_use]
    pub fn new(counts: impl IntoIterator<Item = (DatacenterId, u8)>) -> Copies {
        Copies { counts: counts.into_iter().filter(|(_, count)| *count > 0).collect() }
    }

    /// All copies.
    #[must_use]
    pub fn total(&self) -> u8 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// The copies in one datacenter.
    #[must_use]
    pub fn in_datacenter(&self, datacenter: DatacenterId) -> u8 {
        self.counts.iter().find(|(name, _)| *name == datacenter).map_or(0, |(_, count)| *count)
    }

    /// The copies in each datacenter that has any.
    #[must_use]
    pub fn counts(&self) -> &[(DatacenterId, u8)] {
        &self.counts
    }
}

/// One of the well-known choices of N, W and R. Of these only [`Preset::STRONG`] overlaps: the usual tables call
/// *balanced* and *write-heavy* strong as well, but 3 + 2 is not more than 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name that people look for.
    pub name: &'static str,
    /// Copies.
    pub n: u8,
    /// Replicas that acknowledge a write.
    pub w: u8,
    /// Replicas that answer a read.
    pub r: u8,
}

impl Preset {
    /// Reads see every acknowledged write.
    pub const STRONG: Preset = Preset { name: "strong", n: 5, w: 3, r: 3 };
    /// Quicker reads, which may miss the newest write.
    pub const BALANCED: Preset = Preset { name: "balanced", n: 5, w: 3, r: 2 };
    /// Quicker writes.
    pub const WRITE_HEAVY: Preset = Preset { name: "write-heavy", n: 5, w: 2, r: 3 };
    /// The quickest reads under a majority of writes.
    pub const READ_HEAVY: Preset = Preset { name: "read-heavy", n: 5, w: 3, r: 1 };
    /// Any one replica will do, for reads and writes.
    pub const MAX_AVAILABILITY: Preset = Preset { name: "max-availability", n: 5, w: 1, r: 1 };
    /// All five.
    pub const ALL: [Preset; 5] =
        [Preset::STRONG, Preset::BALANCED, Preset::WRITE_HEAVY, Preset::READ_HEAVY, Preset::MAX_AVAILABILITY];

    /// Whether its reads are sure to see its acknowledged writes.
    #[must_use]
    pub const fn overlaps(self) -> bool {
        self.w + self.r > self.n
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Level::Any => f.write_str("any"),
            Level::One => f.write_str("one"),
            Level::Two => f.write_str("two"),
            Level::Three => f.write_str("three"),
            Level::Quorum => f.write_str("quorum"),
            Level::All => f.write_str("all"),
            Level::LocalOne => f.write_str("local_one"),
            Level::LocalQuorum => f.write_str("local_quorum"),
            Level::EachQuorum => f.write_str("each_quorum"),
            Level::Count(count) => write!(f, "{count}"),
        }
    }
}

/// A name that is no level.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no consistency level: any, one, two, three, quorum, all, local_one, local_quorum, each_quorum or a number"
)]
pub struct UnknownLevel(String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Level, UnknownLevel> {
        Ok(match name {
            "any" => Level::Any,
            "one" => Level::One,
            "two" => Level::Two,
            "three" => Level::Three,
            "quorum" => Level::Quorum,
            "all" => Level::All,
            "local_one" => Level::LocalOne,
            "local_quorum" => Level::LocalQuorum,
            "each_quorum" => Level::EachQuorum,
            number => Level::Count(number.parse().map_err(|_| UnknownLevel(number.to_owned()))?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMS: DatacenterId = DatacenterId(0);
    const FRA: DatacenterId = DatacenterId(1);

    fn required(level: Level, copies: &Copies) -> Result<Required, LevelError> {
        level.required(Operation::Write, copies, AMS)
    }

    #[test]
    fn a_level_that_the_copies_cannot_meet_is_refused() {
        let three = Copies::new([(AMS, 3)]);
        assert_eq!(required(Level::Count(4), &three), Err(LevelError::TooMany { required: 4, copies: 3 }));
        assert_eq!(required(Level::Count(0), &three), Err(LevelError::Zero));
        assert_eq!(
            required(Level::LocalQuorum, &Copies::new([(FRA, 3)])),
            Err(LevelError::NoLocalCopies),
            "a local level is about the coordinator's own datacenter"
        );
        assert_eq!(Level::Any.required(Operation::Read, &three, AMS), Err(LevelError::AnyOnRead));
    }

    #[test]
    fn levels_count_what_their_names_say() {
        let copies = Copies::new([(AMS, 3), (FRA, 2)]);
        assert_eq!(required(Level::Quorum, &copies), Ok(Required::Anywhere(3)));
        assert_eq!(required(Level::All, &copies), Ok(Required::Anywhere(5)));
        assert_eq!(required(Level::LocalQuorum, &copies), Ok(Required::In(vec![(AMS, 2)])));
        assert_eq!(required(Level::EachQuorum, &copies), Ok(Required::In(vec![(AMS, 2), (FRA, 2)])));
    }

    #[test]
    fn only_the_strong_preset_overlaps() {
        let names: Vec<_> = Preset::ALL.iter().filter(|preset| preset.overlaps()).map(|p| p.name).collect();
        assert_eq!(names, ["strong"]);
    }

    #[test]
    fn a_local_quorum_meets_each_quorum_but_not_a_quorum() {
        let copies = Copies::new([(AMS, 3), (FRA, 3)]);
        let of = |level| required(level, &copies).unwrap();
        assert!(overlaps(&copies, &of(Level::EachQuorum), &of(Level::LocalQuorum)));
        assert!(overlaps(&copies, &of(Level::LocalQuorum), &of(Level::LocalQuorum)));
        assert!(!overlaps(&copies, &of(Level::Quorum), &of(Level::LocalQuorum)));
        assert!(overlaps(&copies, &of(Level::Quorum), &of(Level::Quorum)));
        assert!(overlaps(&copies, &of(Level::All), &of(Level::One)));
    }

    #[test]
    fn a_level_reads_back_as_it_is_printed() {
        for name in
            ["any", "one", "two", "three", "quorum", "all", "local_one", "local_quorum", "each_quorum", "5"]
        {
            assert_eq!(name.parse::<Level>().unwrap().to_string(), name);
        }
        assert!("most".parse::<Level>().unwrap_err().to_string().contains("`most` is no consistency level"));
    }
}
