//! weftctl authenticates with a certificate.

#![allow(clippy::unwrap_used)]

mod support;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, string::Ia5String,
};
use support::Scene;
use weft_process::tls::TlsFiles;

#[tokio::test]
async fn a_caller_is_known_by_a_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(path("ca"), authority.pem()).unwrap();
    let certify = |name: &str, role: &str| {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let role = Ia5String::try_from(format!("weft://role/{role}")).unwrap();
        params.subject_alt_names.push(SanType::URI(role));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let files = TlsFiles {
            ca: path("ca"),
            certificate: path(name),
            key: path(&format!("{name}-key")),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    };
    let (scene, address) = Scene::with_certificates(certify("controller", "none")).await;
    let as_caller = |files: &TlsFiles| {
        let path = |path: &std::path::Path| path.display().to_string();
        format!(
            "--controller {address} --tls-ca {} --tls-certificate {} --tls-key {}",
            path(&files.ca),
            path(&files.certificate),
            path(&files.key)
        )
    };
    let (operator, reader) = (certify("operator", "operate"), certify("reader", "read"));
    let run = |who: &TlsFiles, words: &str| format!("{} {words}", as_caller(who));
    scene
        .run(&run(&operator, "vpc create blue --vni 7"))
        .await
        .ok();
    let listed = scene.run(&run(&reader, "vpc list")).await.ok();
    assert!(listed.contains("blue"), "{listed}");
    let refused = scene.run(&run(&reader, "vpc delete blue")).await.failed(1);
    assert!(refused.contains("weft://role/operate"), "{refused}");
    let plain = format!("--controller {address} vpc list");
    let refused = scene.run(&plain).await.failed(1);
    assert!(refused.contains("https:// needs certificates"), "{refused}");
    scene
        .run(&format!("{plain} --tls-ca {}", path("ca").display()))
        .await
        .failed(2);
}
