//! What the file says: SPIRE's `ClusterFederatedTrustDomain`, with nothing left to be guessed (SPIFFE Federation section 6).

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use http::Uri;
use postern_identity::{SpiffeId, TrustBundle, TrustDomain, federation};
use postern_policy::document::{self, DocumentError, Fields, Node, Object};
use rustls::pki_types::UnixTime;

use super::MAX_CARRIED;
use crate::error_chain;
use crate::mesh::Mesh;

/// Relationships of one mesh; proxies take as many.
const MAX_RELATIONSHIPS: usize = 32;
/// Of the file: a ConfigMap has a MiB at most.
const MAX_FILE: u64 = 1024 * 1024;
/// The kinds that are read; what SPIRE has under its own name is taken as it is.
const KIND: &str = "ClusterFederatedTrustDomain";
const VERSIONS: [&str; 2] = ["postern.dev/v1alpha1", "spire.spiffe.io/v1alpha1"];
const PROFILES: [&str; 2] = ["https_web", "https_spiffe"];

/// With one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relationship {
    pub(super) trust_domain: TrustDomain,
    /// `None`: its bundle is what is given, and changes with the file.
    pub(super) endpoint: Option<Endpoint>,
    /// A bundle document (or map), checked: where there is an endpoint, what is believed until it is fetched from there.
    given: Option<Vec<u8>>,
}

/// Where its bundle is fetched from, and who must answer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) url: Uri,
    pub(super) profile: Profile,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Profile {
    /// Whoever the web's certificate authorities say is the host.
    Web,
    /// This identity, under the bundle of its trust domain.
    Spiffe(SpiffeId),
}

/// The relationships of a file, or all that is wrong with it.
pub(super) type Found = Result<BTreeMap<TrustDomain, Relationship>, Refused>;

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) errors: Vec<String>,
    /// It has a relationship for our own trust domain, or another name of it.
    pub(super) names_us: bool,
}

/// What was read, and what it says.
#[derive(Debug)]
pub(super) struct Looked {
    text: Result<Vec<u8>, String>,
    beside: Beside,
    pub(super) found: Found,
}

/// The bundles that a file names beside it, as they were read for it.
type Beside = BTreeMap<PathBuf, Result<Vec<u8>, String>>;

impl Relationship {
    /// The same as long as all of it is configured alike.
    pub(super) fn name(&self) -> String {
        let (url, profile, id) = match &self.endpoint {
            None => (String::new(), "", ""),
            Some(Endpoint { url, profile }) => match profile {
                Profile::Web => (url.to_string(), "https_web", ""),
                Profile::Spiffe(id) => (url.to_string(), "https_spiffe", id.as_str()),
            },
        };
        let given = self.given.as_deref().unwrap_or_default();
        let parts = [
            self.trust_domain.as_str().as_bytes(),
            url.as_bytes(),
            profile.as_bytes(),
            id.as_bytes(),
            given,
        ];
        let mut text = Vec::new();
        for part in parts {
            text.extend((part.len() as u64).to_be_bytes());
            text.extend(part);
        }
        let sum = digest(&SHA256, &text);
        sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Is its endpoint verified by the bundle that it serves? Then it can only be followed from where we were.
    pub(super) fn proves_itself(&self) -> bool {
        let profile = self.endpoint.as_ref().map(|endpoint| &endpoint.profile);
        matches!(profile, Some(Profile::Spiffe(id)) if id.trust_domain() == self.trust_domain.as_str())
    }

    /// What is given, as it is now: a root may have expired since.
    pub(super) fn given_bundle(&self) -> Option<TrustBundle> {
        let document = federation::parse_for(&self.trust_domain, self.given.as_ref()?).ok()?;
        Some(document.into_bundle(self.trust_domain.clone(), UnixTime::now()))
    }
}

/// Reads the file, and the bundles that it names beside it; `None`: all of them are as they were.
pub(super) fn look(path: &Path, mesh: &Mesh, last: Option<&Looked>) -> Option<Looked> {
    let text = bounded(path, MAX_FILE);
    let same =
        |last: &Looked| last.text == text && last.beside.iter().all(|(path, read)| bounded(path, MAX_FILE) == *read);
    if last.is_some_and(same) {
        return None;
    }
    let mut beside = Beside::new();
    let found = read(path, text.clone(), mesh, &mut beside);
    Some(Looked { text, beside, found })
}

fn read(path: &Path, text: Result<Vec<u8>, String>, mesh: &Mesh, beside: &mut Beside) -> Found {
    let of_none = |errors: Vec<String>| Refused {
        errors,
        names_us: false,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = text.and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()));
    let text = text.map_err(|error| of_none(vec![format!("{}: cannot be read: {error}", path.display())]))?;
    let lines = |errors: Vec<DocumentError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    let objects = document::parse(&name, &text).map_err(|errors| of_none(lines(errors)))?;
    let names_us = objects.iter().any(|object| names_us(object, mesh));
    if objects.len() > MAX_RELATIONSHIPS {
        let errors = vec![format!("{name}: more than {MAX_RELATIONSHIPS} relationships")];
        return Err(Refused { errors, names_us });
    }
    let (mut found, mut errors) = (BTreeMap::new(), Vec::new());
    let directory = path.parent().unwrap_or(Path::new("."));
    for object in &objects {
        match decode(object, directory, mesh, beside) {
            Ok(relationship) => {
                let name = relationship.trust_domain.clone();
                if found.insert(name.clone(), relationship).is_some() {
                    let what = format!("trust domain `{name}` has a relationship already");
                    errors.push(object.error("spec.trustDomain", what));
                }
            }
            Err(mut wrong) => errors.append(&mut wrong),
        }
    }
    if errors.is_empty() {
        return Ok(found);
    }
    let errors = lines(errors);
    Err(Refused { errors, names_us })
}

/// Whatever else is wrong with it.
fn names_us(object: &Object, mesh: &Mesh) -> bool {
    let mut spec = object.spec.as_ref().and_then(|spec| Fields::of(spec, "spec").ok());
    let name = spec.as_mut().and_then(|spec| spec.text("trustDomain"));
    let name = name.and_then(|name| TrustDomain::parse(&name).ok());
    name.is_some_and(|name| name == mesh.trust_domain || mesh.trust_domain_alias.contains(&name))
}

fn decode(
    object: &Object,
    directory: &Path,
    mesh: &Mesh,
    beside: &mut Beside,
) -> Result<Relationship, Vec<DocumentError>> {
    if object.kind != KIND || !VERSIONS.contains(&object.api_version.as_str()) {
        let what = format!("only {KIND} of {} is read here", VERSIONS.join(" or "));
        return Err(vec![object.error("kind", what)]);
    }
    let mut errors = Vec::new();
    let nothing = Node {
        place: object.place.clone(),
        value: document::Value::Null,
    };
    let mut spec = Fields::of(object.spec.as_ref().unwrap_or(&nothing), "spec").map_err(|error| vec![error])?;
    // SPIRE's: which of its controllers it is for.
    spec.take("className");
    let trust_domain = trust_domain(&mut spec, mesh);
    let given = given(&mut spec, directory, beside, trust_domain.as_ref());
    let endpoint = endpoint(&mut spec, &mut errors);
    let place = spec.place().clone();
    if let (Some(name), Ok(endpoint), Ok(given)) = (&trust_domain, &endpoint, &given) {
        match endpoint {
            None if given.is_none() => {
                let what = "neither `bundleEndpointURL` nor `trustDomainBundle` says what its bundle is";
                spec.error(&place, "trustDomainBundle", what);
            }
            Some(Endpoint {
                profile: Profile::Spiffe(id),
                ..
            }) if given.is_none() && id.trust_domain() == name.as_str() => {
                let what = "is missing: the first answer of an endpoint that proves itself by the bundle it serves is verified by it";
                spec.error(&place, "trustDomainBundle", what);
            }
            None | Some(_) => {}
        }
    }
    spec.finish(&mut errors);
    match (trust_domain, endpoint, given) {
        (Some(trust_domain), Ok(endpoint), Ok(given)) if errors.is_empty() => Ok(Relationship {
            trust_domain,
            endpoint,
            given,
        }),
        _ => Err(errors),
    }
}

/// Never our own, nor another name of it: one name would then have two bundles.
fn trust_domain(spec: &mut Fields<'_>, mesh: &Mesh) -> Option<TrustDomain> {
    let place = spec.place_of("trustDomain").cloned();
    let text = spec.required_text("trustDomain")?;
    let place = place?;
    let what = match TrustDomain::parse(&text) {
        Err(error) => error.to_string(),
        Ok(name) if name == mesh.trust_domain => "is our own trust domain, for which our CA alone speaks".to_owned(),
        Ok(name) if mesh.trust_domain_alias.contains(&name) => {
            "is another name of our own trust domain (--trust-domain-alias): whoever has a bundle of its own is somebody else"
                .to_owned()
        }
        Ok(name) => return Some(name),
    };
    spec.error(&place, "trustDomain", what);
    None
}

/// The error is told already.
struct Told;

fn given(
    spec: &mut Fields<'_>,
    directory: &Path,
    beside: &mut Beside,
    trust_domain: Option<&TrustDomain>,
) -> Result<Option<Vec<u8>>, Told> {
    let (inline, file) = ("trustDomainBundle", "trustDomainBundleFile");
    let places = [inline, file].map(|name| spec.place_of(name).cloned());
    let (field, place, bytes) = match (spec.text(inline), spec.text(file), places) {
        (None, None, _) => return Ok(None),
        (Some(text), None, [Some(place), _]) => (inline, place, text.into_bytes()),
        (None, Some(path), [_, Some(place)]) => {
            let at = directory.join(&path);
            let read = beside.entry(at.clone()).or_insert_with(|| bounded(&at, MAX_FILE));
            match read {
                Ok(bytes) => (file, place, bytes.clone()),
                Err(error) => {
                    spec.error(&place, file, format!("`{path}` cannot be read: {error}"));
                    return Err(Told);
                }
            }
        }
        (_, _, places) => {
            let place = places
                .into_iter()
                .flatten()
                .next_back()
                .unwrap_or_else(|| spec.place().clone());
            spec.error(
                &place,
                file,
                format!("stands beside `{inline}`: one of them says what the bundle is"),
            );
            return Err(Told);
        }
    };
    let trust_domain = trust_domain.ok_or(Told)?;
    let what = match federation::parse_for(trust_domain, &bytes) {
        Ok(document) => match carried(&document.into_bundle(trust_domain.clone(), UnixTime::now())) {
            Ok(()) => return Ok(Some(bytes)),
            Err(what) => what,
        },
        Err(error) => error_chain(&error),
    };
    spec.error(&place, field, what);
    Err(Told)
}

/// May it go to proxies? As we write it.
pub(super) fn carried(bundle: &TrustBundle) -> Result<(), String> {
    let length = bundle.to_document().len();
    if length > MAX_CARRIED {
        return Err(format!(
            "its document of {length} bytes is longer than {MAX_CARRIED}, which is not carried to proxies"
        ));
    }
    Ok(())
}

fn endpoint(spec: &mut Fields<'_>, errors: &mut Vec<DocumentError>) -> Result<Option<Endpoint>, Told> {
    let at = ["bundleEndpointURL", "bundleEndpointProfile"].map(|name| spec.place_of(name).cloned());
    let text = spec.text("bundleEndpointURL");
    let profile = spec.child("bundleEndpointProfile");
    match (text, profile, at) {
        (None, None, _) => Ok(None),
        (Some(text), Some(profile), [Some(place), _]) => {
            let url = url(&text).map_err(|what| spec.error(&place, "bundleEndpointURL", what));
            let profile = self::profile(profile, errors);
            match (url, profile) {
                (Ok(url), Some(profile)) => Ok(Some(Endpoint { url, profile })),
                _ => Err(Told),
            }
        }
        (Some(_), None, _) => {
            spec.missing("bundleEndpointProfile");
            Err(Told)
        }
        (_, _, _) => {
            spec.missing("bundleEndpointURL");
            Err(Told)
        }
    }
}

fn profile(mut fields: Fields<'_>, errors: &mut Vec<DocumentError>) -> Option<Profile> {
    let at = ["type", "endpointSPIFFEID"].map(|name| fields.place_of(name).cloned());
    let place = fields.place().clone();
    let (kind, id) = (fields.required_text("type"), fields.text("endpointSPIFFEID"));
    let [kind_at, id_at] = at.map(|at| at.unwrap_or_else(|| place.clone()));
    let profile = match (kind.as_deref(), id) {
        (None, _) => None,
        (Some("https_web"), None) => Some(Profile::Web),
        (Some("https_web"), Some(_)) => {
            fields.error(
                &id_at,
                "endpointSPIFFEID",
                "is for https_spiffe: https_web goes by the host's name",
            );
            None
        }
        (Some("https_spiffe"), None) => {
            fields.missing("endpointSPIFFEID");
            None
        }
        (Some("https_spiffe"), Some(id)) => match SpiffeId::parse(&id) {
            Ok(id) => Some(Profile::Spiffe(id)),
            Err(error) => {
                fields.error(&id_at, "endpointSPIFFEID", error.to_string());
                None
            }
        },
        (Some(other), _) => {
            fields.unknown_value(&kind_at, "type", other, &PROFILES);
            None
        }
    };
    fields.finish(errors);
    profile
}

/// `https`, a host, and nobody's name or password in it (SPIFFE Federation section 5.1).
pub(super) fn url(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("`{text}` is no URL: {error}"))?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if uri.scheme_str() != Some("https") {
        Err(format!("`{text}` is not https"))
    } else if authority.contains('@') {
        Err("holds a user's name: an endpoint has none".to_owned())
    } else if !has_a_port_or_none(&uri) {
        Err(format!("`{text}` has a port that is none"))
    } else if text.contains('#') || uri.host().is_none_or(str::is_empty) {
        Err(format!("`{text}` is no address of a document: https://host/path"))
    } else {
        Ok(uri)
    }
}

/// What is no port is not taken for the usual one.
fn has_a_port_or_none(uri: &Uri) -> bool {
    let (host, authority) = (uri.host().unwrap_or_default(), uri.authority());
    let rest = authority.and_then(|authority| authority.as_str().strip_prefix(host));
    rest == Some("") || uri.port_u16().is_some_and(|port| port > 0)
}

/// The whole of a file that is not longer.
fn bounded(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let read = file
        .take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if read as u64 > most {
        return Err(format!("it is longer than {most} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
