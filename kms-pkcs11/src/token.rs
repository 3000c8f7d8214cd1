//! A token, through its vendor's module: the key that wraps is found by its label, checked, and used for AES-GCM.

use std::fmt;
use std::path::PathBuf;

use aws_lc_rs::rand;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

/// AES-256, and nothing weaker.
const KEY_LEN: u64 = 32;
/// What AES-GCM takes as it is; random for each wrapping, of which there are a few a day.
const IV_LEN: usize = 12;
const TAG_BITS: u64 = 128;
/// Bytes of a CKA_ID that we make.
const ID_LEN: usize = 8;
/// KMS v2 wants ciphertexts under 1 kB; the CA wraps 32 bytes.
pub(crate) const MAX_PLAINTEXT: usize = 512;
/// Slots and keys that an error lists.
const MAX_NAMED: usize = 8;

/// Where a token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) module: PathBuf,
    pub(crate) token_label: String,
    pub(crate) pin_file: PathBuf,
}

/// Which key. Written as `label#id`, the ID in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyName {
    pub(crate) label: String,
    /// `None`: the only one of this label.
    pub(crate) id: Option<Vec<u8>>,
}

/// Why a token did not do what was asked, in words that say what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// It is not there, or not well. It may come back.
    Away(String),
    /// It does not take the PIN, which must not be tried again.
    Pin(String),
    /// It takes the PIN, and the key is not as it must be, or cannot do this.
    Key(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) | Self::Pin(why) | Self::Key(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.label, hex(self.id.as_deref().unwrap_or_default()))
    }
}

impl KeyName {
    /// Of what stands beside a wrapped seed.
    fn parse(text: &str) -> Option<Self> {
        let (label, id) = text.rsplit_once('#')?;
        Some(Self {
            label: label.to_owned(),
            id: Some(of_hex(id)?),
        })
    }
}

/// One that is logged in to.
pub(crate) struct Token {
    session: Session,
    label: String,
}

impl Token {
    pub(crate) fn open(place: &Place, pin: &str) -> Result<Self, Fault> {
        Self::opened(place, pin, Pkcs11::open_ro_session)
    }

    pub(crate) fn open_to_write(place: &Place, pin: &str) -> Result<Self, Fault> {
        Self::opened(place, pin, Pkcs11::open_rw_session)
    }

    fn opened(
        place: &Place,
        pin: &str,
        session: impl FnOnce(&Pkcs11, Slot) -> Result<Session, Error>,
    ) -> Result<Self, Fault> {
        let module = place.module.display();
        if cfg!(target_feature = "crt-static") {
            return Err(Fault::Away(
                "this build is static and can load no PKCS#11 module: build postern-kms-pkcs11 without crt-static"
                    .to_owned(),
            ));
        }
        let context = Pkcs11::new(&place.module).map_err(|error| {
            Fault::Away(format!(
                "cannot load the PKCS#11 module {module}: {error}; install it, or name the right file with --module"
            ))
        })?;
        let failed = |error: Error| Fault::Away(format!("the PKCS#11 module {module}: {error}"));
        // One thread uses it, and modules may have their own.
        let locking = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        context.initialize(locking).map_err(failed)?;
        let (slot, info) = slot_of(&context, place)?;
        let label = place.token_label.clone();
        if info.user_pin_locked() {
            return Err(Fault::Pin(format!(
                "the user PIN of token {label:?} is locked: set it anew with its security officer's PIN"
            )));
        }
        if info.user_pin_final_try() {
            return Err(Fault::Pin(format!(
                "token {label:?} locks after one more wrong PIN, and nothing is tried here: log in by hand with the right one \
                 (`pkcs11-tool --login --list-objects`), write it into {}",
                place.pin_file.display()
            )));
        }
        let session = session(&context, slot).map_err(failed)?;
        let secret = AuthPin::from(pin.to_owned());
        match session.login(UserType::User, Some(&secret)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(Self { session, label }),
            Err(Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked,
                _,
            )) => Err(Fault::Pin(format!(
                "token {label:?} refuses the PIN of {}; it is not tried again before that file changes (tokens lock after a few \
                 wrong ones): write the right PIN into it",
                place.pin_file.display()
            ))),
            Err(Error::Pkcs11(RvError::UserPinNotInitialized, _)) => Err(Fault::Pin(format!(
                "token {label:?} has no user PIN yet: set one with its security officer's PIN"
            ))),
            Err(error) => Err(failed(error)),
        }
    }

    /// The key that wraps, once it has shown that it does.
    pub(crate) fn status(&self, name: &KeyName) -> Result<KeyName, Fault> {
        let (key, name) = self.wrapping_key(name)?;
        let mut probe = [0; KEY_LEN as usize];
        rand::fill(&mut probe).map_err(|_| Fault::Away("the system gives no random numbers".to_owned()))?;
        let back = self.decrypt(key, &name, &self.encrypt(key, &name, &probe)?)?;
        if *back != probe {
            return Err(Fault::Key(format!(
                "key {name} of token {:?} does not give back what it encrypted: do not use this token",
                self.label
            )));
        }
        Ok(name)
    }

    pub(crate) fn wrap(&self, name: &KeyName, plaintext: &[u8]) -> Result<(KeyName, Vec<u8>), Fault> {
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(Fault::Key(format!(
                "{} bytes to encrypt; {MAX_PLAINTEXT} at most",
                plaintext.len()
            )));
        }
        let (key, name) = self.wrapping_key(name)?;
        let wrapped = self.encrypt(key, &name, plaintext)?;
        Ok((name, wrapped))
    }

    /// With whichever key wrapped it, as long as that is on the token.
    pub(crate) fn unwrap(&self, key_id: &str, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let name = KeyName::parse(key_id).ok_or_else(|| {
            Fault::Key(format!(
                "{key_id:?} is no key of a PKCS#11 token: what it wrapped belongs to another KMS plugin"
            ))
        })?;
        self.decrypt(self.key(&name)?, &name, wrapped)
    }

    /// Makes one that cannot leave the token.
    pub(crate) fn make_key(&self, label: &str) -> Result<KeyName, Fault> {
        let name = KeyName {
            label: label.to_owned(),
            id: None,
        };
        if let Some(there) = self.keys(&name)?.first() {
            let there = self.name_of(*there, &name)?;
            return Err(Fault::Key(format!(
                "token {:?} has a key {there} already: choose another label",
                self.label
            )));
        }
        let mut id = [0; ID_LEN];
        rand::fill(&mut id).map_err(|_| Fault::Away("the system gives no random numbers".to_owned()))?;
        let template = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(KEY_LEN.into()),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
        ];
        let made = self.session.generate_key(&Mechanism::AesKeyGen, &template);
        made.map_err(|error| self.says(&error))?;
        self.status(&KeyName {
            id: Some(id.to_vec()),
            ..name
        })
    }

    fn keys(&self, name: &KeyName) -> Result<Vec<ObjectHandle>, Fault> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(name.label.as_bytes().to_vec()),
        ];
        // (One without an ID is found among all of its label.)
        template.extend(name.id.clone().filter(|id| !id.is_empty()).map(Attribute::Id));
        self.session.find_objects(&template).map_err(|error| self.says(&error))
    }

    fn key(&self, name: &KeyName) -> Result<ObjectHandle, Fault> {
        let label = &self.label;
        match *self.keys(name)? {
            [key] => Ok(key),
            [] => Err(Fault::Key(format!(
                "token {label:?} has no AES key {name}: what it wrapped cannot be read without it. Put it back; or, if there \
                 never was one, make it with `postern-kms-pkcs11 make-key`"
            ))),
            ref several => {
                let names = several.iter().take(MAX_NAMED).map(|key| self.name_of(*key, name));
                let names = names.collect::<Result<Vec<_>, _>>()?;
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                Err(Fault::Key(format!(
                    "token {label:?} has several keys {:?} ({}): say which with --key-id",
                    name.label,
                    names.join(", ")
                )))
            }
        }
    }

    fn name_of(&self, key: ObjectHandle, name: &KeyName) -> Result<KeyName, Fault> {
        let found = self.attributes(key, &[AttributeType::Id])?;
        let id = found.into_iter().find_map(|attribute| match attribute {
            Attribute::Id(id) => Some(id),
            _ => None,
        });
        Ok(KeyName {
            label: name.label.clone(),
            id: Some(id.unwrap_or_default()),
        })
    }

    fn attributes(&self, key: ObjectHandle, wanted: &[AttributeType]) -> Result<Vec<Attribute>, Fault> {
        let found = self.session.get_attributes(key, wanted);
        found.map_err(|error| self.says(&error))
    }

    /// One that may wrap from now on: strong, and bound to its token.
    fn wrapping_key(&self, name: &KeyName) -> Result<(ObjectHandle, KeyName), Fault> {
        let key = self.key(name)?;
        let name = self.name_of(key, name)?;
        let wanted = [
            AttributeType::Sensitive,
            AttributeType::Extractable,
            AttributeType::Encrypt,
            AttributeType::Decrypt,
            AttributeType::ValueLen,
        ];
        match unfit(&self.attributes(key, &wanted)?, wanted.len()) {
            None => Ok((key, name)),
            Some(why) => Err(Fault::Key(format!(
                "key {name} of token {:?} {why}: make another with `postern-kms-pkcs11 make-key`",
                self.label
            ))),
        }
    }

    fn encrypt(&self, key: ObjectHandle, name: &KeyName, plaintext: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut iv = [0; IV_LEN];
        rand::fill(&mut iv).map_err(|_| Fault::Away("the system gives no random numbers".to_owned()))?;
        let bound = bound_to(name);
        let parameters = GcmParams::new(&mut iv, &bound, TAG_BITS.into()).map_err(|error| self.says(&error))?;
        let sealed = self.session.encrypt(&Mechanism::AesGcm(parameters), key, plaintext);
        let sealed = sealed.map_err(|error| self.says(&error))?;
        if sealed.len() != plaintext.len() + (TAG_BITS / 8) as usize {
            return Err(Fault::Key(format!(
                "token {:?} made {} bytes of {} by AES-GCM: do not use this token",
                self.label,
                sealed.len(),
                plaintext.len()
            )));
        }
        // As it stands now: some tokens put one of their own there.
        Ok([&iv[..], &sealed].concat())
    }

    fn decrypt(&self, key: ObjectHandle, name: &KeyName, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let bound = bound_to(name);
        let Some((iv, sealed)) = wrapped.split_at_checked(IV_LEN) else {
            return Err(Fault::Key(format!("what key {name} wrapped was cut")));
        };
        let mut iv = iv.to_vec();
        let parameters = GcmParams::new(&mut iv, &bound, TAG_BITS.into()).map_err(|error| self.says(&error))?;
        let opened = self.session.decrypt(&Mechanism::AesGcm(parameters), key, sealed);
        match opened {
            Ok(mut opened) => {
                let kept = Zeroizing::new(opened.clone());
                opened.zeroize();
                Ok(kept)
            }
            // Which of these a changed ciphertext makes differs between tokens.
            Err(Error::Pkcs11(
                error @ (RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::GeneralError
                | RvError::FunctionFailed),
                _,
            )) => Err(Fault::Key(format!(
                "key {name} of token {:?} does not open what stands under its name ({}): that was changed, or another key has \
                 taken its place; put the store or the key back from a backup",
                self.label,
                first_sentence(&error.to_string())
            ))),
            Err(error) => Err(self.says(&error)),
        }
    }

    fn says(&self, error: &Error) -> Fault {
        let label = &self.label;
        match error {
            Error::Pkcs11(error @ (RvError::MechanismInvalid | RvError::MechanismParamInvalid), _) => {
                Fault::Key(format!(
                    "token {label:?} has no AES-GCM for this key ({}): its key cannot wrap here",
                    first_sentence(&error.to_string())
                ))
            }
            Error::Pkcs11(error, function) => Fault::Away(format!(
                "token {label:?}: {function}: {}",
                first_sentence(&error.to_string())
            )),
            error => Fault::Away(format!("token {label:?}: {error}")),
        }
    }
}

/// The one of this label.
fn slot_of(context: &Pkcs11, place: &Place) -> Result<(Slot, TokenInfo), Fault> {
    let module = place.module.display();
    let label = &place.token_label;
    let slots = context.get_slots_with_token();
    let slots = slots.map_err(|error| Fault::Away(format!("the PKCS#11 module {module}: {error}")))?;
    // One that goes away meanwhile is none.
    let tokens = slots
        .into_iter()
        .filter_map(|slot| Some((slot, context.get_token_info(slot).ok()?)))
        .filter(|(_, info)| info.token_initialized());
    let tokens: Vec<(Slot, TokenInfo)> = tokens.collect();
    let mut named = tokens.iter().filter(|(_, info)| info.label() == label);
    match (named.next(), named.next()) {
        (Some((slot, info)), None) => Ok((*slot, info.clone())),
        (Some(_), Some(_)) => Err(Fault::Key(format!(
            "the PKCS#11 module {module} has several tokens {label:?}: give each a label of its own"
        ))),
        (None, _) => {
            let others = tokens
                .iter()
                .take(MAX_NAMED)
                .map(|(_, info)| format!("{:?}", info.label()));
            let others: Vec<String> = others.collect();
            let has = match others.is_empty() {
                true => "no token at all".to_owned(),
                false => others.join(", "),
            };
            Err(Fault::Away(format!(
                "the PKCS#11 module {module} has no token {label:?} (it has {has}): plug it in, or name it with --token-label"
            )))
        }
    }
}

/// Why a key with these attributes is not taken for wrapping.
fn unfit(attributes: &[Attribute], asked: usize) -> Option<String> {
    let fault = attributes.iter().find_map(|attribute| match attribute {
        Attribute::Sensitive(false) => Some("can be read out in clear (CKA_SENSITIVE is false)".to_owned()),
        Attribute::Extractable(true) => Some("can leave it (CKA_EXTRACTABLE is true)".to_owned()),
        Attribute::Encrypt(false) => Some("must not encrypt (CKA_ENCRYPT is false)".to_owned()),
        Attribute::Decrypt(false) => Some("must not decrypt (CKA_DECRYPT is false)".to_owned()),
        Attribute::ValueLen(length) if **length != KEY_LEN => {
            Some(format!("has {} bits, not 256", length.saturating_mul(8)))
        }
        _ => None,
    });
    fault.or_else(|| {
        let silent = attributes.len() < asked;
        silent.then(|| "does not say whether it can leave the token, or how long it is".to_owned())
    })
}

/// So that nothing opens under the name of another key.
fn bound_to(name: &KeyName) -> Vec<u8> {
    format!("postern-kms-pkcs11 1 {name}").into_bytes()
}

/// The library explains each code in a paragraph.
fn first_sentence(text: &str) -> &str {
    text.split(". ").next().unwrap_or(text).trim_end_matches('.')
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn of_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_keys_name_is_its_label_and_its_id_and_reads_back() {
        for (label, id) in [("kek", &[0xa0, 1][..]), ("a#b", &[]), ("", &[255])] {
            let name = KeyName {
                label: label.to_owned(),
                id: Some(id.to_vec()),
            };
            assert_eq!(KeyName::parse(&name.to_string()).unwrap(), name);
        }
        for other in ["key-1", "kek#1", "kek#xy", "kek#+1"] {
            assert_eq!(KeyName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_key_that_can_leave_its_token_or_is_short_does_not_wrap() {
        let good = || {
            vec![
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::ValueLen(KEY_LEN.into()),
            ]
        };
        assert_eq!(unfit(&good(), 5), None);
        for (at, bad, says) in [
            (0, Attribute::Sensitive(false), "CKA_SENSITIVE"),
            (1, Attribute::Extractable(true), "CKA_EXTRACTABLE"),
            (2, Attribute::Encrypt(false), "CKA_ENCRYPT"),
            (3, Attribute::Decrypt(false), "CKA_DECRYPT"),
            (4, Attribute::ValueLen(16.into()), "128 bits"),
        ] {
            let mut attributes = good();
            attributes[at] = bad;
            let why = unfit(&attributes, 5).unwrap();
            assert!(why.contains(says), "{why}");
            attributes.remove(at);
            assert!(unfit(&attributes, 5).unwrap().contains("does not say"), "{says}");
        }
    }
}
