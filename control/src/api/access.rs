//! May they: the API server decides, by SubjectAccessReview. A yes is remembered for a moment; a no, or no answer, is not.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::api::{Api, PostParams};

use super::front_proxy::User;
use super::objects::{GROUP, Resource, VERSION};

/// A review is one call to the API server next door.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a yes holds. A right that is taken away is gone this much later; `kubectl get -w` loops would ask each time.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Yeses remembered: users times resources times namespaces that are looked at within seconds.
const MAX_REMEMBERED: usize = 1024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    pub(crate) resource: Resource,
    /// `None`: in all of them, or the resource has none.
    pub(crate) namespace: Option<String>,
    /// `None`: a list, or something new.
    pub(crate) name: Option<String>,
}

/// Why not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    /// The API server says no.
    #[error("{0}")]
    Forbidden(String),
    /// Nobody could say.
    #[error("the API server could not be asked whether this is allowed")]
    Review(#[source] kube::Error),
    /// Nobody said in time.
    #[error("the API server did not say within {DEADLINE:?} whether this is allowed")]
    TooSlow,
}

/// See the module.
pub(crate) struct Access {
    reviews: Api<SubjectAccessReview>,
    allowed: Mutex<HashMap<(User, Asked), Instant>>,
}

impl Asked {
    fn verb(&self) -> &'static str {
        match (self.resource, &self.name) {
            (Resource::Explanations, _) => "create",
            (Resource::Edges | Resource::Identities | Resource::Proxies | Resource::Replicas, Some(_)) => "get",
            (Resource::Edges | Resource::Identities | Resource::Proxies | Resource::Replicas, None) => "list",
        }
    }

    fn attributes(&self) -> ResourceAttributes {
        ResourceAttributes {
            group: Some(GROUP.to_owned()),
            version: Some(VERSION.to_owned()),
            resource: Some(self.resource.plural().to_owned()),
            verb: Some(self.verb().to_owned()),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            ..ResourceAttributes::default()
        }
    }

    /// As the API server itself words it, so that `kubectl`'s users know it.
    fn refusal(&self, user: &User, reason: Option<String>) -> String {
        let resource = self.resource.plural();
        let what = match &self.name {
            Some(name) => format!("{resource}.{GROUP} \"{name}\""),
            None => format!("{resource}.{GROUP}"),
        };
        let place = match &self.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let why = reason
            .filter(|reason| !reason.is_empty())
            .map_or_else(String::new, |reason| format!(": {reason}"));
        format!(
            "{what} is forbidden: User \"{}\" cannot {} resource \"{resource}\" in API group \"{GROUP}\" {place}{why}",
            user.name,
            self.verb()
        )
    }
}

impl Access {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            reviews: Api::all(client),
            allowed: Mutex::default(),
        }
    }

    /// Fails closed: only a clear yes is one.
    pub(crate) async fn check(&self, user: &User, asked: &Asked) -> Result<(), Denied> {
        let key = (user.clone(), asked.clone());
        if self.remembers(&key, Instant::now()) {
            return Ok(());
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(asked.attributes()),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let params = PostParams::default();
        let answer = tokio::time::timeout(DEADLINE, self.reviews.create(&params, &review)).await;
        let status = answer.map_err(|_| Denied::TooSlow)?.map_err(Denied::Review)?.status;
        match status {
            Some(SubjectAccessReviewStatus {
                allowed: true, denied, ..
            }) if denied != Some(true) => {
                self.remember(key, Instant::now());
                Ok(())
            }
            Some(status) => Err(Denied::Forbidden(asked.refusal(user, status.reason))),
            None => Err(Denied::Forbidden(asked.refusal(user, None))),
        }
    }

    fn remembers(&self, key: &(User, Asked), now: Instant) -> bool {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.get(key).is_some_and(|until| now < *until)
    }

    fn remember(&self, key: (User, Asked), now: Instant) {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed.len() >= MAX_REMEMBERED {
            allowed.retain(|_, until| now < *until);
        }
        // Still full: not remembered is only slower.
        if allowed.len() < MAX_REMEMBERED {
            allowed.insert(key, now + REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use super::*;

    /// Its API server is never asked.
    fn access() -> Access {
        let service =
            tower::service_fn(|_| std::future::pending::<Result<http::Response<kube::client::Body>, Infallible>>());
        Access::new(kube::Client::new(service, "default"))
    }

    fn question(user: &str) -> (User, Asked) {
        let user = User {
            name: user.to_owned(),
            ..User::default()
        };
        let asked = Asked {
            resource: Resource::Edges,
            namespace: Some("shop".to_owned()),
            name: None,
        };
        (user, asked)
    }

    #[tokio::test]
    async fn a_yes_is_forgotten_in_time() {
        let access = access();
        let now = Instant::now();
        access.remember(question("ann"), now);
        assert!(access.remembers(&question("ann"), now + REMEMBERED - Duration::from_millis(1)));
        assert!(!access.remembers(&question("ann"), now + REMEMBERED));
        assert!(!access.remembers(&question("bob"), now));
    }

    #[tokio::test]
    async fn no_more_than_the_bound_is_remembered_and_the_old_make_room() {
        let access = access();
        let now = Instant::now();
        for i in 0..=MAX_REMEMBERED {
            access.remember(question(&i.to_string()), now);
        }
        assert!(access.remembers(&question(&(MAX_REMEMBERED - 1).to_string()), now));
        assert!(!access.remembers(&question(&MAX_REMEMBERED.to_string()), now));
        access.remember(question("late"), now + REMEMBERED);
        assert!(access.remembers(&question("late"), now + REMEMBERED));
        assert_eq!(access.allowed.lock().unwrap().len(), 1);
    }
}
