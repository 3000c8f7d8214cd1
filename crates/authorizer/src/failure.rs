//! Why there is no verdict. Every one of them denies.

/// What went wrong, by whom.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    // -- the request
    /// The request cannot be put into the question: it is refused with 400, as OPA-Envoy does.
    #[error("the request cannot be asked about: {0}")]
    Unaskable(&'static str),
    // -- the authorizer
    /// No answer within the deadline, or the policy ran past its limit.
    #[error("no answer within the deadline")]
    Timeout,
    /// No connection, or it broke.
    #[error("the authorizer cannot be reached")]
    Unreachable,
    /// gRPC status other than OK.
    #[error("the authorizer answered with gRPC status {0}")]
    Grpc(i32),
    /// The reply lacks its status, which protobuf would read as OK.
    #[error("the reply has no status")]
    NoStatus,
    /// The reply says that the authorizer itself failed.
    #[error("the authorizer failed")]
    ErrorResponse,
    /// The reply contradicts itself or its type is wrong.
    #[error("the reply makes no sense: {0}")]
    Nonsense(&'static str),
    /// The reply is larger than is taken.
    #[error("the reply is too large: {0}")]
    TooLarge(&'static str),
    /// The reply wants to set, remove or answer a field that is not its to touch, or that is malformed.
    #[error("the reply may not touch the field `{0}`")]
    Field(String),
    // -- the embedded policy
    /// The policy's decision is undefined for this request.
    #[error("the decision is undefined")]
    Undefined,
    /// Evaluation failed; the message names module and line.
    #[error("evaluation failed: {0}")]
    Evaluation(String),
}

impl Failure {
    /// For metrics and logs: a closed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unaskable(_) => "unaskable",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Grpc(_) => "grpc_status",
            Self::NoStatus => "no_status",
            Self::ErrorResponse => "error_response",
            Self::Nonsense(_) => "nonsense",
            Self::TooLarge(_) => "too_large",
            Self::Field(_) => "forbidden_field",
            Self::Undefined => "undefined",
            Self::Evaluation(_) => "evaluation",
        }
    }
}
