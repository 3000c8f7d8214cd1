//! Why the CA refuses: one closed set of words, shared by the CA that says them and the callers that hear them.
//!
//! The word travels in the gRPC trailer [`REASON_HEADER`]; the status message is for people.

use std::time::Duration;

use tonic::{Code, Status};

/// The metadata key that carries [`RefusalReason::as_str`].
pub const REASON_HEADER: &str = "postern-reason";

/// The metadata key of the hint when to come again, in milliseconds; gRPC's own name for it.
pub const RETRY_HEADER: &str = "grpc-retry-pushback-ms";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $code:ident, final: $final:literal;)*) => {
        /// Why a call was refused. Words are stable: metrics and callers rely on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum RefusalReason { $($(#[$doc])* $variant,)* }

        impl RefusalReason {
            /// All of them, for metrics that start at zero.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word on the wire and in metrics.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
            /// The gRPC status code that goes with it.
            #[must_use]
            pub fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code,)* }
            }
            /// True where the same evidence can never succeed: the caller needs a new token, not patience.
            #[must_use]
            pub fn is_final(self) -> bool {
                match self { $(Self::$variant => $final,)* }
            }
        }
    };
}

reasons! {
    /// The request carries no attestation, or one that this CA does not know.
    AttestationMissing = "attestation_missing", InvalidArgument, final: true;
    /// Not one DER PKCS#10 request.
    CsrMalformed = "csr_malformed", InvalidArgument, final: true;
    /// Longer than the CA reads.
    CsrTooLarge = "csr_too_large", InvalidArgument, final: true;
    /// The request's own signature does not hold: no proof of possession.
    CsrSignature = "csr_signature", InvalidArgument, final: true;
    /// A key of a kind or strength that is not certified, or a known one.
    CsrKey = "csr_key", InvalidArgument, final: true;
    /// A key that was certified before; every certificate has a fresh key.
    CsrKeyReused = "csr_key_reused", InvalidArgument, final: false;
    /// Not a join token.
    TokenMalformed = "token_malformed", Unauthenticated, final: true;
    /// No such join token: never made, revoked, or long expired.
    TokenUnknown = "token_unknown", Unauthenticated, final: true;
    /// The join token is past its time.
    TokenExpired = "token_expired", Unauthenticated, final: true;
    /// The join token has been used.
    TokenRedeemed = "token_redeemed", Unauthenticated, final: true;
    /// The service-account token does not hold: expired, for another audience, of a pod that is gone, or no token at all.
    ServiceAccountToken = "service_account_token", Unauthenticated, final: false;
    /// The service-account token holds, and is not bound to a pod.
    ServiceAccountUnbound = "service_account_unbound", PermissionDenied, final: false;
    /// Who holds the service-account token cannot be asked at the moment.
    TokenReviewUnavailable = "token_review_unavailable", Unavailable, final: false;
    /// The previous SVID does not verify under the current bundle.
    RenewalChain = "renewal_chain", Unauthenticated, final: true;
    /// The previous SVID expired longer ago than is accepted.
    RenewalExpired = "renewal_expired", Unauthenticated, final: true;
    /// The request is not signed by the previous key.
    RenewalSignature = "renewal_signature", Unauthenticated, final: true;
    /// The previous SVID is not one of this CA's workloads.
    RenewalIdentity = "renewal_identity", PermissionDenied, final: true;
    /// Somebody who is cut off. A word of the CA's own log and metrics: the caller hears [`Self::Refused`].
    Quarantined = "quarantined", PermissionDenied, final: false;
    /// No reason is given. It may come to an end without the caller's doing.
    Refused = "refused", PermissionDenied, final: false;
    /// The clock is outside the issuing certificate's validity.
    Clock = "clock", Unavailable, final: false;
    /// Too many requests in flight in all.
    Busy = "busy", ResourceExhausted, final: false;
    /// Too many requests in flight from this caller.
    BusyCaller = "busy_caller", ResourceExhausted, final: false;
    /// This identity has been given many certificates within a short time.
    BusyIdentity = "busy_identity", ResourceExhausted, final: false;
    /// What would be issued could not be written into the ledger.
    Ledger = "ledger", Unavailable, final: false;
    /// The store could not be written.
    Store = "store", Unavailable, final: false;
    /// The caller is not who may call this.
    CallerIdentity = "caller_identity", PermissionDenied, final: true;
    /// The caller's own SVID has run out on this connection.
    CallerExpired = "caller_expired", Unauthenticated, final: false;
    /// A JWT-SVID without an audience, with too many, or with one that is too long.
    JwtAudience = "jwt_audience", InvalidArgument, final: true;
    /// The CA has no key of JWT-SVIDs yet.
    JwtUnavailable = "jwt_unavailable", Unavailable, final: false;
    /// The CA is going down.
    ShuttingDown = "shutting_down", Unavailable, final: false;
    /// A fault of the CA's own.
    Internal = "internal", Internal, final: false;
    /// A word that this version does not know.
    Other = "other", Unknown, final: false;
}

impl RefusalReason {
    /// When it is worth while to come again, where that is known: what the CA needs is expected back within seconds.
    #[must_use]
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::TokenReviewUnavailable | Self::Busy | Self::BusyCaller => Some(Duration::from_millis(500)),
            // One certificate a second is what it gets; a disk that is full is not empty sooner.
            Self::BusyIdentity | Self::Ledger => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
    /// The status to answer with; `message` is for people and must hold nothing secret.
    #[must_use]
    pub fn status(self, message: impl Into<String>) -> Status {
        let mut status = Status::new(self.code(), message);
        status.metadata_mut().insert(
            REASON_HEADER,
            tonic::metadata::MetadataValue::from_static(self.as_str()),
        );
        if let Some(wait) = self.retry_after() {
            let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            status.metadata_mut().insert(RETRY_HEADER, wait.into());
        }
        status
    }

    /// What a CA's status says; `None`: no CA said it (the connection broke, a proxy in between answered).
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let word = status.metadata().get(REASON_HEADER)?.to_str().ok()?;
        Some(
            Self::ALL
                .iter()
                .copied()
                .find(|reason| reason.as_str() == word)
                .unwrap_or(Self::Other),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in RefusalReason::ALL {
            assert_eq!(RefusalReason::of(&reason.status("why")), Some(*reason));
        }
    }

    #[test]
    fn a_refusal_that_time_heals_says_when_to_come_again() {
        let status = RefusalReason::TokenReviewUnavailable.status("why");
        assert_eq!(status.metadata().get(RETRY_HEADER).unwrap(), "500");
        assert!(
            !RefusalReason::TokenRedeemed
                .status("why")
                .metadata()
                .contains_key(RETRY_HEADER)
        );
    }

    #[test]
    fn a_word_from_the_future_is_other_and_a_bare_status_is_nobodys() {
        let mut status = Status::unavailable("x");
        assert_eq!(RefusalReason::of(&status), None);
        status
            .metadata_mut()
            .insert(REASON_HEADER, "phase_of_the_moon".parse().unwrap());
        assert_eq!(RefusalReason::of(&status), Some(RefusalReason::Other));
    }
}
