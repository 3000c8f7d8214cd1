//! Is this pod to be in the mesh?

use k8s_openapi::api::core::v1::Pod;
use postern_policy::Mode;

use super::{PodContext, may_loosen};
use crate::annotations::{INJECT, MODE, OURS, hint};

/// No webhook sees them: so that a dead injector never keeps a cluster from coming up, this is a second line.
const EXCLUDED: [&str; 4] = ["postern-system", "kube-system", "kube-public", "kube-node-lease"];
/// What a kubelet makes of a static pod: a picture in the API, which must be equal to its file.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// See the module.
pub(crate) enum Standing {
    /// Yes.
    Meshed,
    /// No.
    Outside {
        reason: &'static str,
        /// For people, if anybody asked for the mesh.
        why: Option<String>,
        /// It is written on the pod.
        mark: bool,
    },
}

/// `Err` refuses the pod: nobody is left outside by a typo.
pub(crate) fn of(pod: &Pod, context: &PodContext<'_>) -> Result<Standing, String> {
    let outside = |reason, why: Option<&str>, mark| {
        let why = why.map(str::to_owned);
        Ok(Standing::Outside { reason, why, mark })
    };
    let labels = pod.metadata.labels.as_ref();
    if pod
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(MIRROR))
    {
        let why = "a static pod is its kubelet's: it stays outside of the mesh, and its peers treat it as a stranger";
        return outside("mirror_pod", Some(why), false);
    }
    if EXCLUDED.contains(&context.namespace) {
        return outside("namespace", None, false);
    }
    for key in labels.into_iter().flat_map(|labels| labels.keys()) {
        if let Some(name) = key
            .strip_prefix(OURS)
            .filter(|_| ![INJECT, MODE].contains(&key.as_str()))
        {
            return Err(format!(
                "label {key}: nothing has this name{}",
                hint(name, &["inject", "mode"])
            ));
        }
    }
    if let Some(Err(what)) = labels.and_then(|labels| labels.get(MODE)).map(|mode| Mode::parse(mode)) {
        return Err(format!("label {MODE}: {what}"));
    }
    let of_namespace = context.labels.get(INJECT).map(String::as_str);
    match (
        labels.and_then(|labels| labels.get(INJECT)).map(String::as_str),
        of_namespace,
    ) {
        (Some("enabled"), _) | (None, Some("enabled")) => {}
        (Some("disabled"), Some("enabled")) => {
            let why = "the pod's label postern.dev/inject=disabled keeps it outside of the mesh: its traffic is not secured, \
                       and peers in the mesh treat it as a stranger";
            return outside("disabled", Some(why), false);
        }
        (Some("disabled"), _) => return outside("disabled", None, false),
        (Some(other), _) => {
            let near = hint(other, &["enabled", "disabled"]);
            return Err(format!(
                "label {INJECT}: `{other}`: enabled and disabled are possible{near}"
            ));
        }
        (None, _) => return outside("not_enabled", None, false),
    }
    let Some(spec) = &pod.spec else {
        return Ok(Standing::Meshed);
    };
    if spec.host_network == Some(true) {
        let why = "hostNetwork: the pod shares its node's network, whose traffic cannot be captured; it stays outside of the \
                   mesh, and its peers treat it as a stranger";
        return outside("host_network", Some(why), true);
    }
    let selects = |key| {
        spec.node_selector
            .as_ref()
            .and_then(|all| all.get(key))
            .map(String::as_str)
    };
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") || selects("kubernetes.io/os") == Some("windows") {
        let why = "Windows: there is no proxy for it; the pod stays outside of the mesh, and its peers treat it as a stranger";
        return outside("windows", Some(why), true);
    }
    Ok(Standing::Meshed)
}

/// A pod's own mode that control will not follow.
pub(crate) fn looser_mode(pod: &Pod, context: &PodContext<'_>) -> Option<String> {
    let wanted = Mode::parse(pod.metadata.labels.as_ref()?.get(MODE)?).ok()?;
    let base = context
        .labels
        .get(MODE)
        .map_or(Ok(Mode::default()), |mode| Mode::parse(mode));
    let base = base.unwrap_or_default();
    (wanted < base && !may_loosen(context)).then(|| {
        format!(
            "label {MODE}={}: it is looser than the namespace's {}, which does not allow that \
             (postern.dev/allow-loosening); {} holds",
            wanted.as_str(),
            base.as_str(),
            base.as_str()
        )
    })
}
