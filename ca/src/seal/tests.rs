#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

const HEAD: &str = "postern-ca-store 2 tokens\n";

struct Keys {
    dir: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let keys = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        assert!(make_kek_file(&keys.path()).unwrap());
        keys
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("kek")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }

    fn hold(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    /// Puts a new key before the others.
    fn rotate(&self) {
        let other = Self::new();
        self.hold(&format!("# since today\n{}\n# before\n{}", other.text(), self.text()));
    }

    fn sealer(&self) -> Sealer {
        Sealer::by_file(&self.path()).unwrap()
    }

    fn refused(&self) -> String {
        Sealer::by_file(&self.path()).unwrap_err().to_string()
    }
}

async fn reopened(sealer: &Sealer, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    sealer.learn(&[sealed]).await.map_err(|error| error.to_string())?;
    sealer.open(HEAD, sealed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_was_sealed_opens_and_nothing_that_was_changed_does(
        body in proptest::collection::vec(any::<u8>(), 8..300),
        at in any::<proptest::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let keys = Keys::new();
        let sealed = keys.sealer().seal(HEAD, &body).unwrap();
        prop_assert!(!sealed.windows(body.len()).any(|window| window == body));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // Another process, with the same key.
        let other = keys.sealer();
        let opened = runtime.block_on(reopened(&other, &sealed));
        prop_assert_eq!(&*opened.unwrap(), &body);
        prop_assert!(other.open("postern-ca-store 2 root\n", &sealed).is_err());
        let mut changed = sealed.clone();
        let at = at.index(changed.len());
        changed[at] ^= 1 << bit;
        match runtime.block_on(reopened(&keys.sealer(), &changed)) {
            // White space of JSON, or a bit of base64 that stands for nothing.
            Ok(opened) => prop_assert_eq!(&*opened, &body),
            Err(why) => prop_assert!(!why.is_empty()),
        }
    }
}

#[test]
fn a_record_is_sealed_under_a_key_of_its_own_each_time() {
    let sealer = Keys::new().sealer();
    let envelope = |bytes: Vec<u8>| -> Envelope { serde_json::from_slice(&bytes).unwrap() };
    let one = envelope(sealer.seal(HEAD, b"the same").unwrap());
    let two = envelope(sealer.seal(HEAD, b"the same").unwrap());
    assert_eq!(one.kek, two.kek);
    assert_ne!(one.salt, two.salt);
    assert_ne!(one.ciphertext, two.ciphertext);
}

#[tokio::test]
async fn a_new_key_before_the_old_one_seals_and_both_open() {
    let keys = Keys::new();
    let sealer = keys.sealer();
    let before = sealer.seal(HEAD, b"body").unwrap();
    assert!(!sealer.follow_kek().await.unwrap());
    assert!(sealer.is_current(&before));
    let old = keys.text();
    keys.rotate();
    assert!(sealer.follow_kek().await.unwrap());
    assert!(!sealer.is_current(&before));
    let after = sealer.seal(HEAD, b"body").unwrap();
    assert!(sealer.is_current(&after));
    for sealed in [&before, &after] {
        assert_eq!(&**reopened(&keys.sealer(), sealed).await.unwrap(), b"body");
    }
    // The old one goes: what is still sealed under it says so, with its name and where it is missed.
    let (_, old_id) = {
        let of_old = Keys::new();
        of_old.hold(&old);
        of_old.sealer().kek_shown()
    };
    keys.hold(keys.text().split("# before").next().unwrap());
    let why = reopened(&keys.sealer(), &before).await.unwrap_err();
    assert!(
        why.contains(&old_id) && why.contains(&keys.path().display().to_string()),
        "{why}"
    );
    assert_eq!(&**reopened(&keys.sealer(), &after).await.unwrap(), b"body");
    // A process that has not read its file since finds the key that came.
    let late = Keys::new();
    let sealer = late.sealer();
    late.hold(&keys.text());
    assert_eq!(&**reopened(&sealer, &after).await.unwrap(), b"body");
}

#[tokio::test]
async fn a_seed_that_was_changed_or_is_another_providers_says_so() {
    let keys = Keys::new();
    let sealed = keys.sealer().seal(HEAD, b"body").unwrap();
    let mut envelope: Envelope = serde_json::from_slice(&sealed).unwrap();
    let mut seed = envelope.kek.seed.bytes().to_vec();
    *seed.last_mut().unwrap() ^= 1;
    envelope.kek.seed = Base64::of(&seed);
    let learn = async |envelope: &Envelope| {
        let record = serde_json::to_vec(envelope).unwrap();
        keys.sealer().learn(&[&record]).await.unwrap_err().to_string()
    };
    assert!(learn(&envelope).await.contains("was changed"));
    envelope.kek.provider = "kms-v2".to_owned();
    let why = learn(&envelope).await;
    assert!(why.contains("a kms-v2") && why.contains("a file"), "{why}");
}

#[test]
fn the_key_is_beside_a_store_and_never_in_it_however_that_is_written() {
    for store in ["/var/lib/ca", "/var/lib/ca/", "/var/lib//ca/."] {
        assert_eq!(
            KekConfig::beside(Path::new(store)),
            KekConfig::File("/var/lib/ca.kek".into()),
            "{store}"
        );
    }
}

#[test]
fn a_file_of_keys_that_is_not_right_says_where_and_never_shows_a_key() {
    let keys = Keys::new();
    let key = keys.text();
    for (text, says) in [
        (String::new(), "holds no key"),
        ("# nothing\n\n".to_owned(), "holds no key"),
        (format!("{key}c2hvcnQ=\n"), ":2: this is not 32 bytes"),
        (format!("\n{}x\n", key.trim()), ":2: this is not 32 bytes"),
        (format!("{key}{key}"), ":2: this key stands there twice"),
    ] {
        keys.hold(&text);
        let refused = keys.refused();
        assert!(refused.contains(says), "{refused}");
        assert!(
            !refused.contains(key.trim()) && !refused.contains("c2hvcnQ"),
            "{refused}"
        );
    }
    keys.hold(&key);
    for mode in [0o640, 0o604, 0o620] {
        std::fs::set_permissions(keys.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(keys.refused().contains("chmod 600"), "{mode:o}");
    }
    std::fs::set_permissions(keys.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let sealer = keys.sealer();
    let shown = format!("{sealer:?}");
    assert!(!shown.contains(key.trim()), "{shown}");
    // One that is there is never written over.
    assert!(!make_kek_file(&keys.path()).unwrap());
    assert_eq!(keys.text(), key);
}
