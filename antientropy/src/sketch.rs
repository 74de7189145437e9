//! What differs between two large sets, from little more than what differs takes.
//!
//! Each side has *sources*: numbered sums, of the buckets of a [`HashTree`](crate::hash_tree::HashTree) or of single keys.
//! All but a few are the same on both sides. A [`Sketch`] makes of them a sequence of [`Cell`]s without an end, each the sum
//! of some sources; the difference of two sides' cells is then the sum of the *differences* of these sources, and most have
//! none. A cell with one is recognised, since a bucket's number or a key's position comes out by a division. It is taken out
//! of all other cells, of which some then have one left, and so on. When the first cell, which is the sum of all, is empty,
//! everything has been found.
//!
//! This is a rateless invertible Bloom lookup table (Yang, Gilad and Alizadeh, "Practical Rateless Set Reconciliation",
//! SIGCOMM 2024), from which it has which sources a cell is the sum of, so that any number of differences needs about 1.4
//! times as many cells, and nobody has to know the number. Its cells are other ones. Theirs hold the elements that one side
//! has and the other has not; a key of which the sides hold different versions is two of these. Here it is one, as are all
//! the keys of a bucket, because the difference of two versions' weights is as good as a weight: keys with values that can
//! be subtracted are Goodrich and Mitzenmacher's ("Invertible Bloom Lookup Tables", 2011), and in a field the division tells
//! one difference from several without a count and, for buckets, without a checksum. A cell is 21 bytes.

use std::collections::BTreeMap;

use crate::{
    hash_tree::{Element, Sum},
    residue::Residue,
};

/// The length of a cell's encoding in bytes.
pub const CELL_BYTES: usize = 3 * Residue::BYTES;
/// Fingerprints of one level of a [`Survey`].
const SURVEY_WIDTH: usize = 8;
/// Levels of a [`Survey`].
const SURVEY_LEVELS_MAX: u8 = 32;

/// What the sources are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Buckets, numbered from zero, so many.
    Buckets(u64),
    /// Keys, numbered by their positions.
    Keys,
}

/// A sum of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    sum: Sum,
    /// Of the sources' weights times what tells one source from several.
    tags: Residue,
}

/// The sources of one side, and the cells that were made of them.
#[derive(Clone, Debug)]
pub struct Sketch {
    kind: Kind,
    salt: u64,
    sources: Vec<Source>,
    made: usize,
}

/// A sketch that is compared with the other side's cells.
#[derive(Debug)]
pub struct Decoder {
    sketch: Sketch,
    /// Differences, less what was found.
    cells: Vec<Cell>,
    found: Vec<Source>,
    /// Cells that have changed since they were looked at, and whether each is among them.
    changed: Vec<usize>,
    is_changed: Vec<bool>,
}

/// How many sources differ, roughly, for a few bytes: fingerprints of ever smaller samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    levels: Vec<[u8; SURVEY_WIDTH]>,
}

/// What differs: this side's sum less the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The bucket's number, or the key's position.
    pub id: u64,
    /// By how much.
    pub sum: Sum,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    id: u64,
    cell: Cell,
    walk: Walk,
}

/// The cells that a source is in, one after the other.
#[derive(Clone, Copy, Debug)]
struct Walk {
    at: usize,
    state: u64,
}

impl Kind {
    /// What is multiplied with a source's weight to tell one source from several.
    fn tag(self, salt: u64, id: u64) -> Residue {
        match self {
            Kind::Buckets(_) => Residue::new(id),
            Kind::Keys => Residue::new(mix(!salt ^ mix(id))),
        }
    }

    fn cell(self, salt: u64, id: u64, sum: Sum) -> Cell {
        Cell { sum, tags: sum.weights * self.tag(salt, id) }
    }
}

impl Cell {
    /// Twenty-one bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CELL_BYTES] {
        let mut bytes = [0; CELL_BYTES];
        let parts = [self.sum.weights, self.sum.moments, self.tags];
        for (chunk, part) in bytes.chunks_exact_mut(Residue::BYTES).zip(parts) {
            chunk.copy_from_slice(&part.to_bytes());
        }
        bytes
    }

    /// What [`Cell::to_bytes`] made; none of some other bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; CELL_BYTES]) -> Option<Cell> {
        let part = |number: usize| {
            let part = &bytes[number * Residue::BYTES..][..Residue::BYTES];
            Residue::from_bytes(part.try_into().expect("as long as a residue"))
        };
        Some(Cell { sum: Sum { weights: part(0)?, moments: part(1)? }, tags: part(2)? })
    }

    fn is_zero(&self) -> bool {
        *self == Cell::default()
    }

    fn add(&mut self, other: &Cell) {
        self.sum += other.sum;
        self.tags += other.tags;
    }

    fn subtract(&mut self, other: &Cell) {
        self.sum -= other.sum;
        self.tags -= other.tags;
    }
}

impl Sketch {
    /// Of the buckets of a tree, or of several trees in a row. Both sides need as many, and the same salt, which is to be new
    /// for each comparison.
    #[must_use]
    pub fn of_buckets(salt: u64, sums: impl Iterator<Item = Sum>) -> Sketch {
        let sums: Vec<Sum> = sums.collect();
        let kind = Kind::Buckets(sums.len() as u64);
        Sketch::new(kind, salt, (0..).zip(sums))
    }

    /// Of keys.
    #[must_use]
    pub fn of_keys(salt: u64, elements: impl Iterator<Item = Element>) -> Sketch {
        // Keys of one position are one source.
        let mut sums: BTreeMap<u64, Sum> = BTreeMap::new();
        for element in elements {
            *sums.entry(element.position().get()).or_default() += element;
        }
        Sketch::new(Kind::Keys, salt, sums.into_iter())
    }

    fn new(kind: Kind, salt: u64, sums: impl Iterator<Item = (u64, Sum)>) -> Sketch {
        // What is zero is in no cell.
        let sources = sums.filter(|(_, sum)| !sum.is_zero());
        let sources = sources.map(|(id, sum)| Source::new(kind, salt, id, sum)).collect();
        Sketch { kind, salt, sources, made: 0 }
    }

    /// How many cells were made.
    #[must_use]
    pub fn made(&self) -> usize {
        self.made
    }

    /// The next cells, so many.
    pub fn cells(&mut self, count: usize) -> Vec<Cell> {
        let (from, mut cells) = (self.made, vec![Cell::default(); count]);
        self.made += count;
        for source in &mut self.sources {
            while source.walk.at < self.made {
                cells[source.walk.at - from].add(&source.cell);
                source.walk.step();
            }
        }
        cells
    }

    /// What tells how many of the sources differ from the other side's.
    #[must_use]
    pub fn survey(&self) -> Survey {
        let mut sums: Vec<[Residue; SURVEY_WIDTH]> = Vec::new();
        for source in &self.sources {
            let hash = mix(self.salt.rotate_left(32) ^ mix(source.id));
            let level = hash.trailing_zeros().min(u32::from(SURVEY_LEVELS_MAX) - 1) as usize;
            if sums.len() <= level {
                sums.resize(level + 1, [Residue::ZERO; SURVEY_WIDTH]);
            }
            sums[level][(hash >> 61) as usize] += source.cell.sum.weights;
        }
        let fingerprint = |sum: Residue| sum.get().to_le_bytes()[0];
        Survey { levels: sums.iter().map(|level| level.map(fingerprint)).collect() }
    }
}

impl Source {
    fn new(kind: Kind, salt: u64, id: u64, sum: Sum) -> Source {
        Source { id, cell: kind.cell(salt, id, sum), walk: Walk::new(salt, id) }
    }
}

impl Walk {
    /// Every source is in the first cell.
    fn new(salt: u64, id: u64) -> Walk {
        Walk { at: 0, state: mix(salt ^ mix(id)) }
    }

    /// Goes on to the next cell that the source is in. It is in the i-th with a probability of 1 in 1 + i/2, so in none of
    /// those between the i-th and the j-th with one of (i + 1)(i + 2) in (j + 1)(j + 2), which is turned round here.
    fn step(&mut self) {
        self.state = mix(self.state);
        let chance = ((self.state >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        let next = ((self.at as f64 + 1.5) / chance.sqrt() - 1.5).ceil();
        // A number too large becomes the largest.
        self.at = (next as usize).max(self.at + 1);
    }
}

impl Decoder {
    /// Has heard nothing of the other side.
    #[must_use]
    pub fn new(sketch: Sketch) -> Decoder {
        assert_eq!(sketch.made, 0, "cells are compared from the first on");
        Decoder { sketch, cells: Vec::new(), found: Vec::new(), changed: Vec::new(), is_changed: Vec::new() }
    }

    /// The other side's next cells. Returns whether everything is found.
    pub fn push(&mut self, theirs: &[Cell]) -> bool {
        let ours = self.sketch.cells(theirs.len());
        let from = self.cells.len();
        self.cells.extend(ours.iter().zip(theirs).map(|(ours, theirs)| {
            let mut cell = *ours;
            cell.subtract(theirs);
            cell
        }));
        for source in &mut self.found {
            while source.walk.at < self.cells.len() {
                self.cells[source.walk.at].subtract(&source.cell);
                source.walk.step();
            }
        }
        self.is_changed.resize(self.cells.len(), true);
        self.changed.extend(from..self.cells.len());
        while !self.changed.is_empty() && self.found.len() <= self.cells.len() {
            self.look();
        }
        self.cells.first().is_some_and(Cell::is_zero)
    }

    /// How many cells were compared.
    #[must_use]
    pub fn compared(&self) -> usize {
        self.cells.len()
    }

    /// What was found so far, in the order of the ids.
    #[must_use]
    pub fn differences(&self) -> Vec<Difference> {
        // What was taken for one source by an accident of 2^-56 was taken out again as another.
        let mut sums: BTreeMap<u64, Sum> = BTreeMap::new();
        for source in &self.found {
            *sums.entry(source.id).or_default() += source.cell.sum;
        }
        let differing = sums.into_iter().filter(|(_, sum)| !sum.is_zero());
        differing.map(|(id, sum)| Difference { id, sum }).collect()
    }

    /// Looks at all cells that have changed, and takes out what is alone in one.
    fn look(&mut self) {
        let looked_at: Vec<usize> = std::mem::take(&mut self.changed)
            .into_iter()
            .filter(|index| {
                self.is_changed[*index] = false;
                self.cells[*index].sum.weights != Residue::ZERO
            })
            .collect();
        let weights = looked_at.iter().map(|index| self.cells[*index].sum.weights);
        let inverses = inverses(&weights.collect::<Vec<_>>());
        for (index, inverse) in looked_at.into_iter().zip(inverses) {
            // It may have been changed meanwhile by what was found in another, and is looked at again then.
            if self.is_changed[index] {
                continue;
            }
            if let Some(source) = self.alone_in(index, inverse) {
                self.take_out(source);
            }
        }
    }

    /// The source whose difference a cell is, if it is one's.
    fn alone_in(&self, index: usize, inverse: Residue) -> Option<Source> {
        let Sketch { kind, salt, .. } = self.sketch;
        let cell = self.cells[index];
        let id = match kind {
            Kind::Buckets(count) => Some((cell.tags * inverse).get()).filter(|id| *id < count)?,
            Kind::Keys => (cell.sum.moments * inverse).get(),
        };
        let source = Source::new(kind, salt, id, cell.sum);
        if source.cell != cell {
            return None;
        }
        let mut walk = source.walk;
        while walk.at < index {
            walk.step();
        }
        (walk.at == index).then_some(source)
    }

    fn take_out(&mut self, mut source: Source) {
        while source.walk.at < self.cells.len() {
            let index = source.walk.at;
            self.cells[index].subtract(&source.cell);
            if !std::mem::replace(&mut self.is_changed[index], true) {
                self.changed.push(index);
            }
            source.walk.step();
        }
        self.found.push(source);
    }
}

/// How many numbers of sources are considered, each a twentieth more than the one before: up to a billion times a thousand.
const STEPS: i32 = 567;
/// Of how many of them one is looked at first.
const STRIDE: usize = 16;

impl Survey {
    /// How many sources differ between two sides, within a third or so.
    #[must_use]
    pub fn differing(&self, other: &Survey) -> u64 {
        let levels = self.levels.len().max(other.levels.len());
        let of = |survey: &Survey, level: usize| survey.levels.get(level).copied().unwrap_or_default();
        let equal: Vec<u32> = (0..levels)
            .map(|level| {
                let pairs = of(self, level).into_iter().zip(of(other, level));
                pairs.map(|(ours, theirs)| u32::from(ours == theirs)).sum()
            })
            .collect();
        let width = SURVEY_WIDTH as u32;
        if equal.iter().all(|equal| *equal == width) {
            return 0;
        }
        // The number under which this is likeliest: of so many, each falls into one place of a level with a chance of two
        // to the power of minus the level, by the width.
        let likelihood = |differing: f64| {
            let mut sum = 0.0;
            for (level, equal) in (1..).zip(&equal) {
                let none = (-differing / (SURVEY_WIDTH as f64 * 2_f64.powi(level))).exp();
                let none = none + (1.0 - none) / 256.0;
                sum += f64::from(*equal) * none.ln() + f64::from(width - equal) * (1.0 - none).max(1e-9).ln();
            }
            sum
        };
        // It rises to that and falls from there: the neighbourhood is found in strides.
        let number = |step: i32| 1.05_f64.powi(step);
        let likelier = |a: &i32, b: &i32| likelihood(number(*a)).total_cmp(&likelihood(number(*b)));
        let near = (0..STEPS).step_by(STRIDE).max_by(likelier).unwrap_or_default();
        let reach = STRIDE as i32 - 1;
        let best = (near - reach..=near + reach).filter(|step| (0..STEPS).contains(step)).max_by(likelier);
        number(best.unwrap_or_default()).round() as u64
    }

    /// Its encoding: a byte for each fingerprint.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.levels.concat()
    }

    /// What [`Survey::to_bytes`] made; none of some other bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Survey> {
        let (levels, rest) = bytes.as_chunks();
        (rest.is_empty() && levels.len() <= usize::from(SURVEY_LEVELS_MAX))
            .then(|| Survey { levels: levels.to_vec() })
    }
}

/// How many cells will likely suffice for so many differences.
#[must_use]
pub fn cells_for(differences: u64) -> usize {
    let number = differences as f64;
    (number * 1.36 + 1.5 * number.sqrt() + 2.0).ceil() as usize
}

/// The inverses of several numbers, none of which is zero, for one inversion (Montgomery).
fn inverses(numbers: &[Residue]) -> Vec<Residue> {
    let mut product = Residue::ONE;
    let mut before = Vec::with_capacity(numbers.len());
    for number in numbers {
        before.push(product);
        product = product * *number;
    }
    let mut inverse = product.inverse().unwrap_or_default();
    for (number, before) in numbers.iter().zip(&mut before).rev() {
        *before = *before * inverse;
        inverse = inverse * *number;
    }
    before
}

/// Spreads a number over all 64 bits (Steele, Lea and Flood's SplitMix64, OOPSLA 2014).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::Token;

    use super::*;
    use crate::{
        hash_tree::{HashTree, position_of},
        version::written,
    };

    const SECRET: [u8; 32] = [3; 32];

    fn element(number: u64, version: u8) -> Element {
        Element::new(&SECRET, token(number), &written(version.into()))
    }

    fn token(number: u64) -> Token {
        Token(mix(number))
    }

    fn position(number: u64) -> u64 {
        position_of(token(number)).get()
    }

    /// Compares until everything is found: the differences, and how many cells that took, one at a time.
    fn compare(here: Sketch, mut there: Sketch, cells_max: usize) -> Option<(Vec<Difference>, usize)> {
        let mut decoder = Decoder::new(here);
        while decoder.compared() < cells_max {
            if decoder.push(&there.cells(1)) {
                return Some((decoder.differences(), decoder.compared()));
            }
        }
        None
    }

    /// Keys of which so many are equal, so many have another version there, and so many are missing on either side.
    fn key_sketches(salt: u64, equal: u64, updated: u64, missing: u64) -> (Sketch, Sketch) {
        let common = equal + updated;
        let here = (0..common + missing).map(|number| element(number, u8::from(number < updated)));
        let there =
            (0..common).chain(common + missing..common + 2 * missing).map(|number| element(number, 0));
        (Sketch::of_keys(salt, here), Sketch::of_keys(salt, there))
    }

    fn buckets(content: impl Iterator<Item = (u64, u8)>, keys: u64) -> HashTree {
        let mut tree = HashTree::new(0, keys);
        content
            .for_each(|(number, version)| tree.replace(token(number), None, Some(element(number, version))));
        tree
    }

    #[test]
    fn equals_need_one_cell_and_have_no_difference() {
        let (here, there) = key_sketches(1, 1000, 0, 0);
        assert_eq!(here.survey().differing(&there.survey()), 0);
        assert_eq!(compare(here, there, 9), Some((Vec::new(), 1)));
        let nothing = || Sketch::of_keys(1, std::iter::empty());
        assert_eq!(compare(nothing(), nothing(), 9), Some((Vec::new(), 1)));
    }

    #[test]
    fn updated_and_missing_keys_are_found() {
        let (here, there) = key_sketches(5, 3000, 40, 30);
        let (differences, cells) = compare(here, there, 1000).unwrap();
        let mut expected: Vec<u64> = (0..40).chain(3040..3100).map(position).collect();
        expected.sort_unstable();
        assert_eq!(differences.iter().map(|difference| difference.id).collect::<Vec<_>>(), expected);
        assert!(cells < 200, "{cells}");
        let missing_here = differences.iter().find(|difference| difference.id == position(3080)).unwrap();
        let mut nothing = missing_here.sum;
        nothing += element(3080, 0);
        assert!(nothing.is_zero(), "by its own weight");
    }

    #[test]
    fn a_bucket_counts_once_whatever_differs_in_it() {
        let here = buckets((0..50_000).map(|number| (number, u8::from(number % 1000 == 0))), 50_000);
        let there = buckets((0..50_000).map(|number| (number, 0)), 50_000);
        let differing: Vec<u64> = (0..)
            .zip(here.sums(64).zip(there.sums(64)))
            .filter(|(_, (here, there))| here != there)
            .map(|(bucket, _)| bucket)
            .collect();
        let sketch = |tree: &HashTree| Sketch::of_buckets(11, tree.sums(64));
        let (differences, cells) = compare(sketch(&here), sketch(&there), 1000).unwrap();
        assert_eq!(differences.iter().map(|difference| difference.id).collect::<Vec<_>>(), differing);
        assert!(cells < 120, "{cells} for {}", differing.len());
        // Most have one key, which is found without a look at any other.
        let bits = u32::from(here.bits());
        let alone = |difference: &&Difference| {
            let position = difference.sum.position().unwrap().get();
            position >> (56 - bits) == difference.id
        };
        let alone: Vec<u64> = differences
            .iter()
            .filter(alone)
            .map(|difference| difference.sum.position().unwrap().get())
            .collect();
        assert!(alone.len() > 40);
        assert!(alone.iter().all(|at| (0..50).any(|number| position(number * 1000) == *at)));
    }

    #[test]
    fn any_number_of_differences_needs_about_as_many_cells() {
        for (count, runs, mean_max) in
            [(1, 200, 1.0), (10, 100, 2.1), (100, 30, 1.65), (1000, 10, 1.45), (20_000, 1, 1.42)]
        {
            let (mut cells, mut most, mut enough) = (0, 0, 0);
            for salt in 0..runs {
                let (here, there) = key_sketches(salt, 500, count - count / 4 * 2, count / 4);
                let (differences, needed) = compare(here, there, 100_000).unwrap();
                assert_eq!(differences.len() as u64, count);
                (cells, most) = (cells + needed, most.max(needed));
                enough += u32::from(needed <= cells_for(count));
            }
            let of = |cells: usize, runs: u64| cells as f64 / (runs * count) as f64;
            let (mean, most) = (of(cells, runs), of(most, 1));
            println!("{count}: {mean:.3} cells a difference, at most {most:.2}; {enough} of {runs} within");
            assert!(mean <= mean_max, "{mean}");
        }
    }

    #[test]
    fn a_survey_tells_about_how_many_differ() {
        for count in [1_u64, 5, 30, 300, 3000, 30_000] {
            let mut worst = 1.0_f64;
            for salt in 0..20 {
                let (here, there) = key_sketches(salt, 40_000, count, 0);
                let (here, there) = (here.survey(), there.survey());
                assert!(here.to_bytes().len() <= 8 * 26);
                let number = here.differing(&there) as f64;
                assert_eq!(there.differing(&here) as f64, number);
                worst = worst.max(number / count as f64).max(count as f64 / number.max(0.1));
            }
            println!("{count}: off by a factor of {worst:.2} at most");
            assert!(worst < if count < 10 { 6.0 } else { 2.2 }, "{count}: off by a factor of {worst}");
        }
    }

    #[test]
    fn what_two_sides_compare_under_different_salts_is_not_found() {
        let (here, _) = key_sketches(1, 100, 5, 0);
        let (_, there) = key_sketches(2, 100, 5, 0);
        assert_eq!(compare(here, there, 60), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_decoder_survives_whatever_cells_it_gets(bytes: Vec<[u8; CELL_BYTES]>, salt: u64, is_keys: bool) {
            let cells: Vec<Cell> = bytes.iter().filter_map(Cell::from_bytes).collect();
            let kind = if is_keys { Kind::Keys } else { Kind::Buckets(1 << 20) };
            let sums = (0..50).map(|number| {
                let mut sum = Sum::ZERO;
                sum += element(number, 0);
                (number, sum)
            });
            let mut decoder = Decoder::new(Sketch::new(kind, salt, sums));
            for chunk in cells.chunks(7) {
                decoder.push(chunk);
            }
            prop_assert!(decoder.differences().len() <= 2 * cells.len() + 2);
        }

        #[test]
        fn encodings_come_back(bytes: [u8; CELL_BYTES], survey: Vec<u8>) {
            if let Some(cell) = Cell::from_bytes(&bytes) {
                prop_assert_eq!(cell.to_bytes(), bytes);
            }
            if let Some(read) = Survey::from_bytes(&survey) {
                prop_assert_eq!(read.to_bytes(), survey);
            }
        }
    }
}
