//! `AdmissionReview` of `admission.k8s.io/v1`: what the API server asks, and how it is answered.
//!
//! Fields that we do not read may be of any kind, as a newer API server may send more; those that we read are typed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// An API server's UIDs have 36 bytes.
const MAX_UID: usize = 128;
/// Values in a review: a pod of 100 containers with 100 environment variables each has a tenth of that. A tree takes up
/// to a hundred bytes for each, whatever little the text took.
const MAX_VALUES: usize = 400_000;
/// Warnings in one answer; `kubectl` prints each on a line.
const MAX_WARNINGS: usize = 16;
/// API servers cut longer warnings off, in the middle of what they say.
const MAX_WARNING: usize = 256;
/// Longest reason for a refusal, which `kubectl` prints.
const MAX_MESSAGE: usize = 4 * 1024;

/// Why a body is no review that can be answered: the caller's fault, 400.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReviewError {
    /// Not JSON, or a field of another type.
    #[error("no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// Another kind of object.
    #[error("apiVersion `{0}`, kind `{1}`: only {API_VERSION} AdmissionReview is understood")]
    Kind(String, String),
    /// A field that must be there.
    #[error("request.{0} is missing")]
    Missing(&'static str),
    /// A value that cannot be.
    #[error("request.{0} is too long")]
    Long(&'static str),
    /// Too much of it.
    #[error("it has more than {MAX_VALUES} values")]
    Values,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Comes back in the answer.
    #[serde(default)]
    pub uid: String,
    /// What the object is a resource of.
    #[serde(default)]
    pub resource: Resource,
    /// Such as `ephemeralcontainers`.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// The object's name; empty while the API server has not made one from `generateName`.
    #[serde(default)]
    pub name: Option<String>,
    /// The object's namespace, which need not be in the object itself.
    #[serde(default)]
    pub namespace: Option<String>,
    /// What is done to it.
    pub operation: Operation,
    /// As it would be stored; `null` at DELETE.
    #[serde(default)]
    pub object: Value,
    /// Nothing will be stored.
    #[serde(default)]
    pub dry_run: Option<bool>,
}

/// A resource as in a webhook's rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Resource {
    /// API group; empty for pods.
    pub group: String,
    /// Such as `v1`.
    pub version: String,
    /// Such as `pods`.
    pub resource: String,
}

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// A new one.
    Create,
    /// Another state of it.
    Update,
    /// It goes.
    Delete,
    /// Such as `exec`.
    Connect,
}

impl Request {
    /// Reads a whole body.
    pub fn parse(body: &[u8]) -> Result<Self, ReviewError> {
        // Each value but the first follows one of these; those inside of texts only make the bound stricter.
        let values = body.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
        if values > MAX_VALUES {
            return Err(ReviewError::Values);
        }
        let envelope: Envelope = serde_json::from_slice(body)?;
        if envelope.api_version != API_VERSION || envelope.kind != KIND {
            let short = |text: String| text.chars().take(MAX_UID).collect();
            return Err(ReviewError::Kind(short(envelope.api_version), short(envelope.kind)));
        }
        let request = envelope.request.ok_or(ReviewError::Missing("uid"))?;
        if request.uid.is_empty() {
            return Err(ReviewError::Missing("uid"));
        }
        if request.uid.len() > MAX_UID {
            return Err(ReviewError::Long("uid"));
        }
        let stored = matches!(request.operation, Operation::Create | Operation::Update);
        if stored && !request.object.is_object() {
            return Err(ReviewError::Missing("object"));
        }
        Ok(request)
    }

    /// Is it this resource, or this part of one?
    #[must_use]
    pub fn is(&self, group: &str, resource: &str, sub_resource: Option<&str>) -> bool {
        let part = self.sub_resource.as_deref().filter(|part| !part.is_empty());
        self.resource.group == group && self.resource.resource == resource && part == sub_resource
    }
}

/// What is decided of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It may be stored, with these changes.
    Allowed {
        /// RFC 6902; empty: as it is.
        patch: Patch,
        /// For whoever asked.
        warnings: Vec<String>,
    },
    /// It may not.
    Refused {
        /// Why, and what to do.
        message: String,
    },
    /// It may not now: what is needed to tell is not there yet.
    Later {
        /// Why, and what to do.
        message: String,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
}

impl Verdict {
    /// Allowed as it is.
    #[must_use]
    pub fn allowed() -> Self {
        Self::Allowed {
            patch: Patch(Vec::new()),
            warnings: Vec::new(),
        }
    }

    /// The body of the answer to the request with this UID.
    pub fn answer(self, uid: &str) -> Result<Vec<u8>, serde_json::Error> {
        let failure = |code, reason, message: &str| Status {
            status: "Failure",
            code,
            reason,
            message: cut(message, MAX_MESSAGE),
        };
        let mut response = Response {
            uid,
            allowed: false,
            patch_type: None,
            patch: None,
            status: None,
            warnings: Vec::new(),
        };
        match self {
            Self::Allowed { patch, warnings } => {
                response.allowed = true;
                let each = warnings
                    .iter()
                    .take(MAX_WARNINGS)
                    .map(|warning| cut(warning, MAX_WARNING));
                response.warnings = each.collect();
                if !patch.0.is_empty() {
                    response.patch_type = Some("JSONPatch");
                    response.patch = Some(STANDARD.encode(serde_json::to_vec(&patch)?));
                }
            }
            Self::Refused { message } => response.status = Some(failure(403, "Forbidden", &message)),
            Self::Later { message } => response.status = Some(failure(503, "ServiceUnavailable", &message)),
        }
        serde_json::to_vec(&Answer {
            api_version: API_VERSION,
            kind: KIND,
            response,
        })
    }
}

/// At most `most` bytes, in whole characters, without line breaks of other people's making.
fn cut(text: &str, most: usize) -> String {
    let clean = text.replace(|c: char| c.is_control(), " ");
    if clean.len() <= most {
        return clean;
    }
    let dots = "...";
    let end = clean.floor_char_boundary(most.saturating_sub(dots.len()));
    format!("{}{dots}", clean.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn review() -> Value {
        json!({
            "apiVersion": API_VERSION, "kind": KIND, "future": [1, 2],
            "request": {
                "uid": "u", "operation": "CREATE", "namespace": "shop", "dryRun": true, "another": { "field": null },
                "resource": { "group": "", "version": "v1", "resource": "pods" }, "object": { "metadata": {} },
            },
        })
    }

    fn with(change: impl FnOnce(&mut Value)) -> Result<Request, ReviewError> {
        let mut review = review();
        change(&mut review);
        Request::parse(&serde_json::to_vec(&review).unwrap())
    }

    #[test]
    fn what_a_newer_api_server_says_beside_is_ignored() {
        let request = with(|_| {}).unwrap();
        assert!(request.is("", "pods", None) && !request.is("", "pods", Some("ephemeralcontainers")));
        assert_eq!((request.uid.as_str(), request.dry_run), ("u", Some(true)));
    }

    #[test]
    fn another_kind_version_or_a_missing_part_is_no_review() {
        let error = |change: fn(&mut Value)| with(change).unwrap_err().to_string();
        assert!(error(|r| r["apiVersion"] = json!("admission.k8s.io/v1beta1")).contains("v1beta1"));
        assert!(error(|r| r["kind"] = json!("ConversionReview")).contains("ConversionReview"));
        assert!(error(|r| r["request"]["uid"] = json!("")).contains("request.uid is missing"));
        assert!(
            error(|r| drop(r["request"].as_object_mut().unwrap().remove("uid"))).contains("request.uid is missing")
        );
        assert!(error(|r| r["request"] = json!(null)).contains("request.uid is missing"));
        assert!(error(|r| r["request"]["object"] = json!(null)).contains("request.object is missing"));
        assert!(error(|r| r["request"]["object"] = json!([])).contains("request.object is missing"));
        assert!(error(|r| r["request"]["operation"] = json!("PATCH")).contains("unknown variant"));
        assert!(error(|r| r["request"]["namespace"] = json!(7)).contains("invalid type"));
        assert!(Request::parse(b"").is_err() && Request::parse(b"{").is_err() && Request::parse(b"null").is_err());
    }

    #[test]
    fn bounds_hold_at_and_past_their_ends() {
        assert!(with(|r| r["request"]["uid"] = json!("u".repeat(MAX_UID))).is_ok());
        assert!(with(|r| r["request"]["uid"] = json!("u".repeat(MAX_UID + 1))).is_err());
        let body = |values: usize| {
            let plain = serde_json::to_vec(&review()).unwrap();
            let own = plain.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
            let mut object = review();
            object["request"]["object"]["x"] = json!(",".repeat(values - own));
            let fixed = serde_json::to_vec(&object).unwrap();
            // The new key took a comma or a brace of its own, or none.
            let now = fixed.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
            object["request"]["object"]["x"] = json!(",".repeat(values - own - (now - values)));
            serde_json::to_vec(&object).unwrap()
        };
        assert!(Request::parse(&body(MAX_VALUES)).is_ok());
        assert!(matches!(
            Request::parse(&body(MAX_VALUES + 1)),
            Err(ReviewError::Values)
        ));
    }

    #[test]
    fn a_deletion_needs_no_object() {
        let request = with(|r| {
            r["request"]["operation"] = json!("DELETE");
            r["request"]["object"] = json!(null);
        });
        assert_eq!(request.unwrap().operation, Operation::Delete);
    }

    fn answered(verdict: Verdict) -> Value {
        serde_json::from_slice(&verdict.answer("u").unwrap()).unwrap()
    }

    #[test]
    fn an_answer_has_the_patch_as_base64_or_none_at_all() {
        let patch: Patch = serde_json::from_value(json!([{ "op": "add", "path": "/a", "value": 1 }])).unwrap();
        let answer = answered(Verdict::Allowed {
            patch: patch.clone(),
            warnings: vec!["w\nx".to_owned()],
        });
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        let text = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(serde_json::from_slice::<Patch>(&text).unwrap(), patch);
        assert_eq!(answer["response"]["warnings"], json!(["w x"]));
        let answer = answered(Verdict::allowed());
        assert_eq!(answer["response"], json!({ "uid": "u", "allowed": true }));
    }

    #[test]
    fn a_refusal_says_whether_it_is_worth_trying_again() {
        let message = || "é".repeat(3000);
        let refused = answered(Verdict::Refused { message: message() });
        assert_eq!(refused["response"]["status"]["code"], 403);
        assert!(refused["response"]["status"]["message"].as_str().unwrap().len() <= MAX_MESSAGE);
        assert_eq!(
            answered(Verdict::Later { message: message() })["response"]["status"]["code"],
            503
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_review_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn a_cut_off_review_is_an_error(at in 0_usize..100) {
            let whole = serde_json::to_vec(&review()).unwrap();
            let end = whole.len() * at / 100;
            prop_assert!(Request::parse(&whole[..end]).is_err());
        }

        #[test]
        fn what_is_cut_is_within_its_bound(text in "\\PC{0,400}", most in 3_usize..300) {
            prop_assert!(cut(&text, most).len() <= most);
        }
    }
}
