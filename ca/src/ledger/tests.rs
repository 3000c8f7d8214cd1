#![allow(clippy::unwrap_used)]
use rustls_pki_types::UnixTime;

use super::chain::{Anchor, Chain, Hash, Line, Sealed};
use super::entry::{Entry, Refused};
use super::kept::{EMPTY, Head};
use super::verify::{Broken, How};
use super::*;

const FILE: &str = "ledger.redb";

fn entry(n: u64) -> Entry {
    let at = UnixTime::since_unix_epoch(Duration::from_secs(1_000_000 + n));
    let serial = format!("serial-{n}");
    let reason = "test".to_owned();
    Entry::at(at, Event::Withdrawn { serial, reason })
}

fn key() -> Key {
    KeyRecord::create().unwrap().key().unwrap()
}

/// A chain of `records` in a file.
fn kept(dir: &tempfile::TempDir, key: &Key, records: u64) -> (Kept, Chain, Head) {
    let chain = Chain::begin([7; 32], "one", key).unwrap();
    let kept = Kept::create(&dir.path().join(FILE), &chain).unwrap();
    let head = add(&kept, &chain, key, EMPTY, records);
    (kept, chain, head)
}

fn add(kept: &Kept, chain: &Chain, key: &Key, head: Head, records: u64) -> Head {
    let entries: Vec<Entry> = (head.number + 1..=head.number + records).map(entry).collect();
    kept.append(chain, key, head, &entries.iter().collect::<Vec<_>>())
        .unwrap()
}

fn verified(dir: &tempfile::TempDir, key: Option<&Key>) -> Result<(u64, u64), Broken> {
    let path = dir.path().join(FILE);
    let mut seen = 0;
    let whole = verify::file(&path, &Kept::at(&path), key, |_, _, _, _| seen += 1)?;
    assert_eq!(seen, whole.head.number + 1 - whole.first);
    Ok((whole.first, whole.head.number))
}

/// The same chain as lines.
fn lines(records: u64, key: &Key, replica: &str) -> (Vec<String>, Chain) {
    let chain = Chain::begin([7; 32], replica, key).unwrap();
    let mut before = chain::NOTHING;
    let lines = (1..=records).map(|number| {
        let sealed = chain.seal(key, number, &before, &entry(number)).unwrap();
        before = sealed.hash;
        Line::of(&chain, number, &sealed).text()
    });
    (lines.collect(), chain)
}

fn read(text: &str, key: Option<&Key>, how: How) -> Result<Vec<(u64, u64)>, String> {
    let mut lines = verify::Lines::new(key, how);
    lines
        .read("lines", text.as_bytes(), |_, _, _, _| {})
        .map_err(|error| error.to_string())?;
    Ok(lines.whole().map(|whole| (whole.first, whole.head.number)).collect())
}

#[test]
fn a_chain_goes_on_over_restarts_and_says_nothing_without_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let key = key();
    let (kept, chain, head) = kept(&dir, &key, 10);
    drop(kept);
    let kept = Kept::at(&dir.path().join(FILE));
    assert_eq!((kept.head().unwrap(), kept.chain().unwrap()), (head, chain.clone()));
    add(&kept, &chain, &key, head, 5);
    drop(kept);
    assert_eq!(verified(&dir, Some(&key)).unwrap(), (1, 15));
    assert_eq!(verified(&dir, None).unwrap(), (1, 15));
    let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"serial"));
    let other = KeyRecord::create().unwrap().key().unwrap();
    let error = verified(&dir, Some(&other)).unwrap_err();
    assert!(matches!(&error, Broken::Unreadable { .. }), "{error}");
}

#[test]
fn what_is_taken_out_leaves_an_anchor_and_the_rest_still_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let key = key();
    let (kept, chain, head) = kept(&dir, &key, 20);
    let told = |through, records| {
        let event = Event::Pruned { through, records };
        Entry::at(UnixTime::now(), event)
    };
    let (head, gone) = kept
        .prune(&chain, &key, head, |_, number| number <= 12, told)
        .unwrap()
        .unwrap();
    assert_eq!((head.number, gone), (21, 12));
    assert_eq!(kept.count().unwrap(), 9);
    // All of them: what is left says so.
    let (head, gone) = kept.prune(&chain, &key, head, |_, _| true, told).unwrap().unwrap();
    assert_eq!((head.number, gone), (22, 9));
    assert_eq!(kept.count().unwrap(), 1);
    let head = add(&kept, &chain, &key, head, 3);
    drop(kept);
    assert_eq!(verified(&dir, Some(&key)).unwrap(), (22, 25));
    assert_eq!(verified(&dir, None).unwrap(), (22, 25));
    assert_eq!(head.number, 25);
}

#[test]
fn lines_that_were_changed_dropped_swapped_or_put_in_are_named() {
    let key = key();
    let (lines, _) = lines(9, &key, "one");
    let strict = How::default();
    let joined = |lines: &[String]| lines.join("\n") + "\n";
    assert_eq!(read(&joined(&lines), Some(&key), strict).unwrap(), [(1, 9)]);
    let says = |lines: &[String], words: &str| {
        for key in [Some(&key), None] {
            let error = read(&joined(lines), key, strict).unwrap_err();
            assert!(error.contains("first broken link") && error.contains(words), "{error}");
        }
    };
    let mut dropped = lines.clone();
    dropped.remove(4);
    says(&dropped, "record 6: it follows record 4");
    let mut swapped = lines.clone();
    swapped.swap(4, 5);
    says(&swapped, "record 6: it follows record 4");
    says(&lines[2..], "record 3: it is the first that is there");
    assert_eq!(
        read(&joined(&lines[2..]), Some(&key), How { partial: true }).unwrap(),
        [(3, 9)]
    );
    // Any one digit of what is sealed.
    let mut changed = lines.clone();
    let at = changed[3].find("\"sealed\":\"").unwrap() + 20;
    let other = if changed[3].as_bytes()[at] == b'A' { "B" } else { "A" };
    changed[3].replace_range(at..=at, other);
    says(&changed, "record 4");
    // Cut anywhere within a line.
    let text = joined(&lines[..3]);
    let last = joined(&lines[..2]).len();
    for end in last + 20..text.len() - 2 {
        let error = read(&text[..end], Some(&key), strict).unwrap_err();
        assert!(error.contains("no whole record"), "{error}");
    }
    // Half a line that is written again is no harm, and neither are other lines and repeated ones.
    let half = &lines[1][..60];
    let mixed = format!(
        "noise\n{}\n{half}\n{}\n{}\n{{\"level\":\"INFO\"}}\n",
        lines[0], lines[1], lines[1]
    );
    assert_eq!(read(&mixed, Some(&key), strict).unwrap(), [(1, 2)]);
    // Without the key nobody makes a record that its holder believes: here somebody who can compute hashes.
    let forger = KeyRecord::create().unwrap().key().unwrap();
    let (_, chain) = self::lines(0, &key, "one");
    let forged = chain.seal(&forger, 1, &chain::NOTHING, &entry(1)).unwrap();
    let forged = Line::of(&chain, 1, &forged).text() + "\n";
    assert_eq!(read(&forged, None, strict).unwrap(), [(1, 1)]);
    let error = read(&forged, Some(&key), strict).unwrap_err();
    assert!(error.contains("not sealed under this ledger's key"), "{error}");
}

#[test]
fn chains_of_several_replicas_verify_in_any_mixture() {
    let key = key();
    let (one, _) = lines(6, &key, "one");
    let (two, _) = lines(4, &key, "two/\n \"");
    let mixed: Vec<String> = (0..6)
        .flat_map(|at| [one.get(at).cloned(), two.get(at).cloned()])
        .flatten()
        .collect();
    let mut found = read(&(mixed.join("\n") + "\n"), Some(&key), How::default()).unwrap();
    found.sort_unstable();
    assert_eq!(found, [(1, 4), (1, 6)]);
}

/// Every page of the file, wherever a bit of it turns: what is found is whole, or named; nothing panics.
#[test]
fn a_file_with_a_flipped_bit_or_a_cut_is_whole_or_named_and_never_half_read() {
    let dir = tempfile::tempdir().unwrap();
    let key = key();
    let (kept, _, head) = kept(&dir, &key, 40);
    drop(kept);
    let path = dir.path().join(FILE);
    let whole = std::fs::read(&path).unwrap();
    let (mut named, mut untouched) = (0, 0);
    let mut look = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        match verified(&dir, Some(&key)) {
            // A page that nothing is in.
            Ok(found) => {
                assert_eq!(found, (1, head.number), "{what}");
                untouched += 1;
            }
            Err(_) => named += 1,
        }
    };
    // Of every page that is used some bytes, all over it.
    let used: Vec<usize> = whole
        .chunks(64)
        .enumerate()
        .filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0))
        .map(|(at, _)| at * 64)
        .collect();
    for (turn, at) in used.iter().enumerate().step_by(used.len().div_ceil(150)) {
        let mut bytes = whole.clone();
        let end = (at + 64).min(bytes.len());
        let chunk = &mut bytes[*at..end];
        let byte = chunk.iter().position(|byte| *byte != 0).unwrap();
        chunk[byte] ^= 1 << (turn % 8);
        look(&bytes, &format!("a flip at {at}"));
    }
    for length in (0..whole.len()).step_by(whole.len() / 20) {
        look(&whole[..length], &format!("a cut at {length}"));
    }
    assert!(named > 40, "{named} named, {untouched} untouched");
}

#[test]
fn an_anchor_or_a_record_of_another_chain_does_not_hold() {
    let key = key();
    let (one, two) = (
        Chain::begin([7; 32], "one", &key).unwrap(),
        Chain::begin([7; 32], "one", &key).unwrap(),
    );
    let hash: Hash = [3; 32];
    let anchor: Anchor = one.seal_anchor(&key, 5, &hash).unwrap();
    assert!(one.anchor_holds(&key, &anchor));
    assert!(!two.anchor_holds(&key, &anchor));
    let sealed: Sealed = one.seal(&key, 1, &hash, &entry(1)).unwrap();
    one.open(&key, 1, &hash, &sealed).unwrap();
    for (chain, number, before) in [(&two, 1, hash), (&one, 2, hash), (&one, 1, [4; 32])] {
        assert!(chain.open(&key, number, &before, &sealed).is_err());
    }
}

#[test]
fn an_entry_reads_back_as_it_was_written() {
    let refused = Refused {
        reason: "busy".to_owned(),
        attestation: "none".to_owned(),
        caller: None,
        message: "x".to_owned(),
        count: 2,
        first: 1,
        last: 2,
    };
    for event in [
        Event::Refused(refused),
        Event::Pruned { through: 1, records: 2 },
        Event::Begun {
            version: "1".to_owned(),
        },
    ] {
        let entry = Entry { time: 1, event };
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
        assert!(entry::EVENTS.contains(&entry.name()) && text.contains(entry.name()));
    }
}
