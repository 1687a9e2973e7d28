//! Authentication and authorization of callers.

use std::collections::BTreeMap;

use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};
use tonic::{Extensions, Status};
use weft_process::tls::{Names, Role};

/// The log's target of what concerns who did what.
pub(crate) const AUDIT: &str = "weft::audit";

/// Whose calls count together where calls are limited, and take turns where they wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// The controller itself, which nothing limits.
    Controller,
    /// All that come without a certificate.
    Uncertified,
    /// One with a role for all objects, by the subject of its certificate.
    Subject(String),
    /// A tenant, with all its certificates; or those that one certificate names, with slashes between them.
    Tenants(String),
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Controller => f.write_str("the controller"),
            Self::Uncertified => f.write_str("callers without a certificate"),
            Self::Subject(subject) => write!(f, "'{subject}'"),
            Self::Tenants(tenants) => write!(f, "tenant {tenants}"),
        }
    }
}

/// A caller of the API.
#[derive(Debug, Clone)]
pub struct Caller {
    /// For people: the certificate's subject, the user's number, or the address.
    pub name: String,
    /// What they may do to the intent.
    pub role: Role,
    /// What they may do to the objects of these tenants besides.
    tenants: BTreeMap<String, Role>,
    /// The hosts that the caller may attach as; none: all.
    hosts: Option<Vec<String>>,
    /// Whether it is the controller itself, which changes the intent now and then.
    is_controller: bool,
}

impl Caller {
    /// A caller that may do everything: one that can open the controller's socket, or reaches a port without TLS.
    pub fn trusted(name: String) -> Self {
        Self {
            name,
            role: Role::Admin,
            tenants: BTreeMap::new(),
            hosts: None,
            is_controller: false,
        }
    }

    /// The controller itself, whose changes wait for those of no other caller.
    pub(crate) fn controller() -> Self {
        Self {
            is_controller: true,
            ..Self::trusted("the controller".to_owned())
        }
    }

    /// A caller with a certificate that may do everything.
    #[cfg(test)]
    pub(crate) fn certified(name: &str) -> Self {
        Self {
            hosts: Some(Vec::new()),
            ..Self::trusted(name.to_owned())
        }
    }

    /// Who sent a request, by what goes with it.
    ///
    /// # Errors
    /// Their certificate is not understood.
    pub(crate) fn of(extensions: &Extensions) -> Result<Self, Status> {
        if let Some(tls) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
            let certificates = tls.peer_certs();
            let own = certificates.as_ref().and_then(|chain| chain.first());
            let own =
                own.ok_or_else(|| Status::unauthenticated("the client sent no certificate"))?;
            let names = Names::of(own).map_err(|reason| {
                Status::unauthenticated(format!("cannot parse the certificate: {reason}"))
            })?;
            return Ok(Self {
                name: names.subject,
                role: names.role,
                tenants: names.tenants,
                hosts: Some(names.hosts),
                is_controller: false,
            });
        }
        if let Some(unix) = extensions.get::<UdsConnectInfo>() {
            let user = unix.peer_cred.map(|user| user.uid());
            let name = user.map_or("a local user".to_owned(), |user| format!("user {user}"));
            return Ok(Self::trusted(name));
        }
        // Only what is known to have come without TLS is trusted without it.
        let plain = extensions
            .get::<TcpConnectInfo>()
            .ok_or_else(|| Status::unauthenticated("the connection has no peer address"))?;
        let address = plain.remote_addr();
        let name = address.map_or("somebody".to_owned(), |address| address.to_string());
        Ok(Self::trusted(name))
    }

    /// Whose calls the caller's count among.
    pub(crate) fn account(&self) -> Account {
        if self.is_controller {
            Account::Controller
        } else if self.hosts.is_none() {
            Account::Uncertified
        } else if self.role < Role::Operate && !self.tenants.is_empty() {
            let tenants: Vec<&str> = self.tenants.keys().map(String::as_str).collect();
            // No id of a tenant has a slash.
            Account::Tenants(tenants.join("/"))
        } else {
            Account::Subject(self.name.clone())
        }
    }

    /// Whether the caller may do so much to a tenant's objects.
    pub(crate) fn is_of(&self, tenant: &str, role: Role) -> bool {
        self.role >= role || self.tenants.get(tenant).is_some_and(|own| *own >= role)
    }

    /// Whether the caller may do so much to any tenant's objects.
    pub(crate) fn is_tenant(&self, role: Role) -> bool {
        self.tenants.values().any(|own| *own >= role)
    }

    /// Whether the caller may give a new object this id: a tenant's begin with its name.
    pub(crate) fn may_name(&self, id: &str) -> bool {
        let owner = id.split_once('/').map(|(owner, _)| owner);
        self.role >= Role::Operate || owner.is_some_and(|owner| self.is_of(owner, Role::Operate))
    }

    /// The tenants on whose behalf the caller writes; none for the operator.
    pub(crate) fn writes_for(&self) -> Vec<String> {
        if self.role >= Role::Operate {
            return Vec::new();
        }
        let own = self
            .tenants
            .iter()
            .filter(|(_, role)| **role >= Role::Operate);
        own.map(|(tenant, _)| tenant.clone()).collect()
    }

    /// What the ids of the caller's objects begin with, for people.
    pub(crate) fn prefixes(&self) -> String {
        let own = self
            .tenants
            .iter()
            .filter(|(_, role)| **role >= Role::Operate);
        let own: Vec<String> = own.map(|(tenant, _)| format!("'{tenant}/'")).collect();
        own.join(" or ")
    }

    /// Refuses those who may not do so much, at least to the objects of a tenant, and logs it.
    pub(crate) fn needs_some(&self, role: Role) -> Result<(), Status> {
        if self.is_tenant(role) {
            return Ok(());
        }
        self.needs(role).inspect_err(|refusal| {
            let reason = refusal.message();
            tracing::info!(target: AUDIT, caller = self.name, reason, "refused");
        })
    }

    /// Refuses those who may not do so much.
    pub(crate) fn needs(&self, role: Role) -> Result<(), Status> {
        if self.role >= role {
            return Ok(());
        }
        let name = match role {
            Role::None => "none",
            Role::Read => "read",
            Role::Operate => "operate",
            Role::Admin => "admin",
        };
        Err(Status::permission_denied(format!(
            "the certificate of '{}' does not name weft://role/{name}, or one that includes it",
            self.name
        )))
    }

    /// Refuses callers that may not attach as the host.
    pub(crate) fn speaks_for(&self, host: &str) -> Result<(), Status> {
        match &self.hosts {
            Some(hosts) if !hosts.iter().any(|own| own == host) => {
                Err(Status::permission_denied(format!(
                    "the certificate of '{}' does not name weft://host/{host}",
                    self.name
                )))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn who_comes_from_nowhere_is_nobody() {
        let refused = Caller::of(&Extensions::new()).unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }

    #[test]
    fn a_tenant_has_one_account_and_others_have_each_their_own() {
        let caller = |name: &str, role, tenants: &[&str]| {
            let own = tenants.iter().map(|id| ((*id).to_owned(), Role::Read));
            Caller {
                name: name.to_owned(),
                role,
                tenants: own.collect(),
                hosts: Some(Vec::new()),
                is_controller: false,
            }
        };
        let account = |name, role, tenants| caller(name, role, tenants).account();
        let ann = account("CN=a", Role::None, &["ann"]);
        assert_eq!(ann, account("CN=b", Role::None, &["ann"]));
        assert_eq!(ann.to_string(), "tenant ann");
        assert_ne!(ann, account("CN=a", Role::None, &["ann", "bob"]));
        assert_ne!(ann, account("ann", Role::Operate, &[]));
        // One that reads all is limited in what it writes as the tenant is.
        assert_eq!(ann, account("CN=c", Role::Read, &["ann"]));
        assert_eq!(
            account("CN=c", Role::Read, &[]),
            Account::Subject("CN=c".to_owned())
        );
        assert_eq!(Caller::controller().account(), Account::Controller);
        let operator = account("CN=a", Role::Operate, &["ann"]);
        assert_eq!(operator, Account::Subject("CN=a".to_owned()));
        assert_ne!(operator, account("CN=b", Role::Operate, &["ann"]));
        let [one, other] = ["127.0.0.1:1", "127.0.0.1:2"].map(|it| Caller::trusted(it.to_owned()));
        assert_eq!(one.account(), other.account());
    }
}
