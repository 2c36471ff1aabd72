//! TLS towards backends that are checked over HTTPS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::Failure;
use crate::adapters::outbound::file_identity::FileIdentity;
use crate::domain::{CheckResult, HttpCheck, Tls, Verify};

type Made = Result<Arc<ClientConfig>, String>;

/// Configurations, made once: for a file of authorities again when the file changes.
#[derive(Debug, Default)]
pub(super) struct TlsConfigs {
    none: OnceLock<Made>,
    system: OnceLock<Made>,
    files: Mutex<HashMap<PathBuf, (FileIdentity, Made)>>,
}

impl TlsConfigs {
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        addr: SocketAddr,
        check: &HttpCheck,
        tls: &Tls,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        // Without authorities this host can't tell whom to believe: that is its own fault.
        let config = self.config(&tls.verify).map_err(|why| Failure::new(CheckResult::Local, why))?;
        let connector = TlsConnector::from(config);
        let connected = connector.connect(server_name(addr, check, tls), stream).await;
        connected.map_err(|why| match why.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => Failure::new(CheckResult::Tls, error),
            None => Failure { result: CheckResult::Tls, ..Failure::of_stream(&why) },
        })
    }

    fn config(&self, verify: &Verify) -> Made {
        match verify {
            Verify::None => self.none.get_or_init(trusting).clone(),
            Verify::System => self.system.get_or_init(|| system().and_then(believing)).clone(),
            Verify::File(path) => self.of_file(path),
        }
    }

    fn of_file(&self, path: &Path) -> Made {
        let unreadable =
            |why: &dyn std::fmt::Display| format!("authorities in {} can't be read: {why}", path.display());
        let identity = FileIdentity::of(path).map_err(|why| unreadable(&why))?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = files.get(path).filter(|(known, _)| *known == identity) {
            return made.clone();
        }
        let made = from_file(path).map_err(|why| unreadable(&why)).and_then(believing);
        files.insert(path.to_owned(), (identity, made.clone()));
        made
    }
}

/// That of the option `sni`, else of `host`, else the address (which TLS doesn't send).
fn server_name(addr: SocketAddr, check: &HttpCheck, tls: &Tls) -> ServerName<'static> {
    let of_host = || {
        let host = check.host.as_deref()?;
        Some(host.rsplit_once(':').map_or(host, |(name, _)| name))
    };
    let name = tls.sni.as_deref().or_else(of_host);
    let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
    name.unwrap_or_else(|| ServerName::IpAddress(addr.ip().into()))
}

fn from_file(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|why| why.to_string())?;
    for certificate in certificates {
        let certificate = certificate.map_err(|why| why.to_string())?;
        roots.add(certificate).map_err(|why| why.to_string())?;
    }
    if roots.is_empty() { Err("it has no certificate".to_owned()) } else { Ok(roots) }
}

fn system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let why = found.errors.first().map_or_else(|| "none are installed".to_owned(), ToString::to_string);
    Err(format!("this host has no certificate authorities ({why}): install them, or name a file"))
}

fn believing(roots: RootCertStore) -> Made {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|why| why.to_string())?;
    Ok(finished(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn trusting() -> Made {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Trusting { provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|why| why.to_string())?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(finished(builder.with_no_client_auth()))
}

fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    // Each check sees the certificate of now.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Believes every certificate: `verify=none`.
#[derive(Debug)]
struct Trusting {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
