//! To the app, with a [`super::authorize::Permit`].

/// Idle connections to our app, per worker.
#[derive(Debug, Default)]
pub struct AppPool {}
