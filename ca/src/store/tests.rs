#![allow(clippy::unwrap_used)]
use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca");
    let new = NewStore::begin(&path, Seals::Clear).unwrap();
    new.write(Kind::Authority, &vec![1, 2, 3]).unwrap();
    new.write(Kind::Tokens, &vec![4]).unwrap();
    new.finish().unwrap();
    let store = Store::open(&path, Seals::Clear).unwrap();
    (dir, store)
}

#[test]
fn what_was_written_is_read() {
    let (_dir, store) = store();
    store.write(Kind::Tokens, &vec![5, 6]).unwrap();
    assert_eq!(store.read::<Vec<u8>>(Kind::Tokens).unwrap(), Some(vec![5, 6]));
    assert_eq!(store.read::<Vec<u8>>(Kind::Root).unwrap(), None);
}

#[test]
fn c_06_every_truncation_and_every_flipped_bit_is_noticed_and_has_a_remedy() {
    let (_dir, store) = store();
    let path = store.path(Kind::Authority);
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = store.read::<Vec<u8>>(Kind::Authority).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Damaged { .. }), "{text}");
        assert!(
            text.contains("authority.json is damaged") && text.contains("backup"),
            "{text}"
        );
    };
    for length in 0..whole.len() {
        refused(&whole[..length]);
    }
    for bit in 0..8 * whole.len() {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&flipped);
    }
    refused(&[whole.as_slice(), b" "].concat());
    fs::write(&path, &whole).unwrap();
    assert!(store.read::<Vec<u8>>(Kind::Authority).unwrap().is_some());
}

#[test]
fn c_06_one_file_in_the_place_of_another_is_noticed() {
    let (_dir, store) = store();
    fs::copy(store.path(Kind::Tokens), store.path(Kind::Authority)).unwrap();
    let error = store.read::<Vec<u8>>(Kind::Authority).unwrap_err();
    assert!(error.to_string().contains("another kind"), "{error}");
}

#[test]
fn c_06_a_write_that_was_cut_short_leaves_the_old_file_and_is_swept() {
    let (dir, store) = store();
    let path = dir.path().join("ca");
    let left = path.join(temporary(Kind::Tokens));
    drop(store);
    fs::write(&left, b"postern-ca-store 1 tok").unwrap();
    let store = Store::open(&path, Seals::Clear).unwrap();
    assert_eq!(store.read::<Vec<u8>>(Kind::Tokens).unwrap(), Some(vec![4]));
    assert!(!left.exists());
}

#[test]
fn c_06_a_write_that_fails_keeps_the_old_file() {
    let (dir, store) = store();
    // A directory in the temporary file's place: the write cannot begin (works for root too, unlike a mode).
    let blocked = dir.path().join("ca").join(temporary(Kind::Tokens));
    fs::create_dir(&blocked).unwrap();
    assert!(matches!(
        store.write(Kind::Tokens, &vec![9]),
        Err(StoreError::Io { what: "write", .. })
    ));
    assert_eq!(store.read::<Vec<u8>>(Kind::Tokens).unwrap(), Some(vec![4]));
}

#[test]
fn an_init_that_was_killed_leaves_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca");
    let half_made = NewStore::begin(&path, Seals::Clear).unwrap();
    half_made.write(Kind::Root, &1).unwrap();
    // Not even its destructor runs.
    std::mem::forget(half_made);
    assert!(matches!(
        Store::open(&path, Seals::Clear),
        Err(StoreError::Missing { .. })
    ));
    let again = NewStore::begin(&path, Seals::Clear).unwrap();
    again.write(Kind::Authority, &2).unwrap();
    again.finish().unwrap();
    Store::open(&path, Seals::Clear).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn of_two_inits_at_once_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca");
    let first = NewStore::begin(&path, Seals::Clear).unwrap();
    first.write(Kind::Authority, &1).unwrap();
    // Another process would build under another name.
    let second = NewStore {
        dir: path.clone(),
        building: dir.path().join(".other"),
        seals: Seals::Clear,
    };
    DirBuilder::new().mode(0o700).create(&second.building).unwrap();
    second.write(Kind::Authority, &2).unwrap();
    first.finish().unwrap();
    assert!(matches!(second.finish(), Err(StoreError::Exists { .. })));
    assert_eq!(
        Store::open(&path, Seals::Clear)
            .unwrap()
            .read::<u8>(Kind::Authority)
            .unwrap(),
        Some(1)
    );
}

#[test]
fn a_store_has_one_owner() {
    let (dir, store) = store();
    let path = dir.path().join("ca");
    assert!(matches!(
        Store::open(&path, Seals::Clear),
        Err(StoreError::Locked { .. })
    ));
    drop(store);
    Store::open(&path, Seals::Clear).unwrap();
}

#[test]
fn keys_are_private_from_their_first_byte_and_a_store_that_is_open_to_others_is_refused() {
    let (dir, store) = store();
    let path = dir.path().join("ca");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&store.path(Kind::Authority))), (0o700, 0o600));
    fs::set_permissions(store.path(Kind::Authority), fs::Permissions::from_mode(0o640)).unwrap();
    let error = store.read::<Vec<u8>>(Kind::Authority).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    drop(store);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Store::open(&path, Seals::Clear).unwrap_err().to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

#[test]
fn where_no_store_is_the_command_that_makes_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::open(&dir.path().join("none"), Seals::Clear)
        .unwrap_err()
        .to_string();
    assert!(error.contains("postern-ca init --store"), "{error}");
}

#[test]
fn c_06_writes_at_once_come_one_after_another() {
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        for writer in 0..8_usize {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..20 {
                    store.write(Kind::Tokens, &vec![writer; 1000 * (writer + 1)]).unwrap();
                    let read = store.read::<Vec<usize>>(Kind::Tokens).unwrap().unwrap();
                    assert!(read.len() == 1000 * (read[0] + 1) && read.iter().all(|entry| *entry == read[0]));
                }
            });
        }
    });
}
