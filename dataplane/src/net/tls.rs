//! Who may speak QUIC with this worker: mutual TLS 1.3 with raw public keys (RFC 7250), pinned by the controllers.
//!
//! Each worker makes a fresh Ed25519 key when it starts. Controllers exchange these keys inside their Noise sessions
//! and tell their workers ([`Pins`]); a certificate authority, a name or a date plays no part.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use pangea_ipc::ids::{NodeId, WorkerKey};
use pangea_ipc::worker::Pin;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// What this protocol is called in the TLS handshake; another version of it has another name.
pub const ALPN: &[u8] = b"pangea/1";

/// The name in the handshake; nobody looks at it, the key says who it is.
pub const SERVER_NAME: &str = "worker.pangea";

/// PKCS #8 (RFC 8410) around an Ed25519 seed of 32 bytes.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// SubjectPublicKeyInfo (RFC 8410) around an Ed25519 public key of 32 bytes.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a worker has no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The TLS library refuses.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] Error),
    /// The TLS library lacks what QUIC needs.
    #[error("TLS cannot be set up for QUIC: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The keys that may connect, and whose they are. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pins(Arc<RwLock<HashMap<WorkerKey, Pin>>>);

impl Pins {
    /// Replaces all pins; says the keys that were pinned and are no more.
    pub fn set(&self, pins: &[Pin]) -> Vec<WorkerKey> {
        let map: HashMap<_, _> = pins.iter().map(|pin| (pin.key, *pin)).collect();
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *all, map);
        before.into_keys().filter(|key| !all.contains_key(key)).collect()
    }

    /// All pins, in no particular order.
    #[must_use]
    pub fn all(&self) -> Vec<Pin> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }

    /// Whose key this is; `None` = not admitted.
    #[must_use]
    pub fn node(&self, key: WorkerKey) -> Option<NodeId> {
        self.pin(key).map(|pin| pin.node)
    }

    /// All that is known of whoever shows this key; `None` = not admitted.
    #[must_use]
    pub fn pin(&self, key: WorkerKey) -> Option<Pin> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }
}

/// This worker's key, in the form that TLS wants.
#[derive(Debug)]
pub struct Identity {
    key: WorkerKey,
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// A fresh key.
    ///
    /// # Errors
    /// When the system gives no random bytes or TLS refuses.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], &seed].concat()));
        let provider = Arc::new(ring::default_provider());
        let signing = provider.key_provider.load_private_key(der)?;
        let spki = signing.public_key().ok_or_else(|| Error::General("the key has no public half".to_owned()))?;
        let key = key_of_spki(&spki).ok_or_else(|| Error::General("the key is not Ed25519".to_owned()))?;
        let certificate = CertificateDer::from(spki.to_vec());
        Ok(Self { key, certified: Arc::new(CertifiedKey::new(vec![certificate], signing)), provider })
    }

    /// The public half.
    #[must_use]
    pub fn key(&self) -> WorkerKey {
        self.key
    }

    /// Accepts only clients that show a pinned key.
    ///
    /// # Errors
    /// When TLS refuses.
    pub fn server_config(&self, pins: &Pins) -> Result<QuicServerConfig, KeyError> {
        let check = Arc::new(Check { expected: Expected::Pinned(pins.clone()), provider: Arc::clone(&self.provider) });
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(check)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&self.certified))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption: it would outlive a pin that is taken back.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(QuicServerConfig::try_from(config)?)
    }

    /// Accepts only the server that shows this key.
    ///
    /// # Errors
    /// When TLS refuses.
    pub fn client_config(&self, server: WorkerKey) -> Result<QuicClientConfig, KeyError> {
        let check = Arc::new(Check { expected: Expected::Exactly(server), provider: Arc::clone(&self.provider) });
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous() // "dangerous" = own verifier: the key is checked, there is no certificate to check
            .with_custom_certificate_verifier(check)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&self.certified))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(QuicClientConfig::try_from(config)?)
    }
}

/// The key that the other side of a connection showed; `None` before the handshake is done.
#[must_use]
pub fn shown_key(connection: &quinn::Connection) -> Option<WorkerKey> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    key_of_spki(chain.first()?)
}

fn key_of_spki(spki: &[u8]) -> Option<WorkerKey> {
    spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(WorkerKey)
}

#[derive(Debug)]
enum Expected {
    Exactly(WorkerKey),
    Pinned(Pins),
}

#[derive(Debug)]
struct Check {
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl Check {
    fn admit(&self, spki: &[u8]) -> Result<(), Error> {
        let key = key_of_spki(spki).ok_or(CertificateError::BadEncoding)?;
        let admitted = match &self.expected {
            Expected::Exactly(expected) => key == *expected,
            Expected::Pinned(pins) => pins.node(key).is_some(),
        };
        if admitted { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
    }
}

fn only_tls13<T>() -> Result<T, Error> {
    Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Check {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.admit(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Check {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.admit(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
