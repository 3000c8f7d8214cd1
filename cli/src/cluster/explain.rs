//! `postern explain --cluster`: the question goes to control through the API server, and is answered there.

use postern_control::api::objects::{API_VERSION, Explanation, Object, Resource};
use postern_control::explain::{Answer, Question};

use super::connect::ContextArgs;
use super::{CommandError, said, view};

/// Asks the cluster. What is said of a wrong question is control's own word on it.
pub(crate) fn ask(context: &ContextArgs, question: Question) -> Result<Answer, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| said(&error.into()))?;
    let namespace = question
        .called_namespace()
        .map_err(|error| error.to_string())?
        .to_owned();
    let asked = runtime.block_on(explained(context, &namespace, question));
    let explained = asked.map_err(|error| said(&error))?;
    let status = explained.body.status;
    status.ok_or_else(|| "the cluster gives the question back without an answer".to_owned())
}

async fn explained(
    context: &ContextArgs,
    namespace: &str,
    question: Question,
) -> Result<Object<Explanation>, CommandError> {
    let cluster = context.connect().await?;
    let resource = Resource::Explanations;
    let asked = Object {
        api_version: API_VERSION.to_owned(),
        kind: resource.kind().to_owned(),
        metadata: Default::default(),
        body: Explanation {
            spec: question,
            status: None,
        },
    };
    Ok(view::create(&cluster.client, resource, namespace, &asked).await?)
}
