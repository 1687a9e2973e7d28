//! An authority of certificates for tests.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    string::Ia5String,
};
use weft_process::tls::TlsFiles;

/// An authority, and the files of those whom it has certified.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    pub fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    /// Certifies somebody under these names.
    pub fn certify(&self, file: &str, names: &[&str]) -> TlsFiles {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let uri = |name: &&str| SanType::URI(Ia5String::try_from(*name).unwrap());
        params.subject_alt_names.extend(names.iter().map(uri));
        params.distinguished_name.push(DnType::CommonName, file);
        let own = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&own, &self.issuer).unwrap();
        let path = |end: &str| self.directory.join(format!("{file}.{end}"));
        std::fs::write(path("pem"), certificate.pem()).unwrap();
        std::fs::write(path("key"), own.serialize_pem()).unwrap();
        TlsFiles {
            ca: self.directory.join("ca.pem"),
            certificate: path("pem"),
            key: path("key"),
        }
    }
}
