//! What components need of the Kubernetes API.
