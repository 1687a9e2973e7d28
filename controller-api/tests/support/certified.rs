//! A controller whose callers show certificates.

use tonic::transport::Channel;
use weft_controller::admission::AdmissionConfig;
use weft_process::services::intent_client::IntentClient;
use weft_process::transport::connect;

use super::Controller;
use super::authority::Authority;

/// The controller, and who certifies its callers.
pub struct Certified {
    pub controller: Controller,
    authority: Authority,
    address: String,
    // Last, so that it outlives the controller.
    _directory: tempfile::TempDir,
}

impl Certified {
    pub async fn start() -> Self {
        Self::start_limited(AdmissionConfig::default()).await
    }

    /// The same, where callers may ask for so much.
    pub async fn start_limited(admission: AdmissionConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new(directory.path(), "ours");
        let server = authority.certify("server", &[]);
        let controller =
            Controller::start_limited(directory.path(), "127.0.0.1:0", Some(server), admission)
                .await;
        let address = controller
            .address
            .replace("http://127.0.0.1", "https://localhost");
        Self {
            controller,
            authority,
            address,
            _directory: directory,
        }
    }

    /// A connection of a caller whose certificate has a URI.
    pub async fn channel(&self, name: &str, uri: &str) -> Channel {
        let files = self.authority.certify(name, &[uri]);
        connect(&self.address, Some(&files)).await.unwrap()
    }

    /// A client of that caller.
    pub async fn client(&self, name: &str, uri: &str) -> IntentClient<Channel> {
        IntentClient::new(self.channel(name, uri).await)
    }
}
