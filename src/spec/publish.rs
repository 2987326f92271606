//! `-p [[IP:]HOST:]PORT`: a port of the node published on the host, as `docker run -p` writes it. A PORT alone keeps its
//! number, where docker takes any free one: who has to look it up afterwards could as well have named it.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// One published TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The one host address to publish on; all of them if none.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    /// The port inside the node.
    pub port: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a published port; write PORT, HOST:PORT or IP:HOST:PORT, for example 127.0.0.1:5433:5432"
            )
        };
        if text.contains('[') {
            return Err(format!("`{text}` has an IPv6 address; pgbox publishes on IPv4 addresses"));
        }
        let port = |t: &str| t.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(wrong);
        let text_without_protocol = text.strip_suffix("/tcp").unwrap_or(text);
        let parts: Vec<&str> = text_without_protocol.split(':').collect();
        let (ip, host, inner) = match parts[..] {
            [both] => (None, both, both),
            [host, inner] => (None, host, inner),
            [ip, host, inner] => (Some(ip), host, inner),
            _ => return Err(wrong()),
        };
        let host_ip = match ip {
            None | Some("0.0.0.0") => None,
            Some("localhost") => Some(Ipv4Addr::LOCALHOST),
            Some(ip) => Some(ip.parse().map_err(|_| wrong())?),
        };
        Ok(Self { host_ip, host_port: port(host)?, port: port(inner)? })
    }
}

impl Publish {
    /// The address to tell a user on this host: the published one, or the loopback address.
    pub fn reachable_at(&self) -> Ipv4Addr {
        self.host_ip.unwrap_or(Ipv4Addr::LOCALHOST)
    }

    /// Where it is open, for a user on this host.
    pub fn places(&self) -> String {
        let others = if self.host_ip.is_none() { " and every other address of this host" } else { "" };
        format!("{}:{}{others}", self.reachable_at(), self.host_port)
    }

    /// Whether both claim one port of one host address.
    pub fn collides(&self, other: &Self) -> bool {
        let same_ip = self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip;
        same_ip && self.host_port == other.host_port
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        write!(f, "{ip}:{}->{}", self.host_port, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_of_docker_parse() {
        let p = |t: &str| t.parse::<Publish>().unwrap();
        assert_eq!(p("5433:5432"), Publish { host_ip: None, host_port: 5433, port: 5432 });
        assert_eq!(p("5432"), Publish { host_ip: None, host_port: 5432, port: 5432 });
        assert_eq!(p("127.0.0.1:1:2/tcp").host_ip, Some(Ipv4Addr::LOCALHOST));
        assert_eq!(p("0.0.0.0:1:2").host_ip, None);
        assert_eq!(p("localhost:1:2"), p("127.0.0.1:1:2"));
    }

    #[test]
    fn bad_ports_name_themselves() {
        for bad in [
            "",
            "0:5432",
            "a:b",
            "1:2:3",
            "[::1]:1:2",
            "::1:1:2",
            "host:1:2",
            "70000:1",
            "1:2/udp",
            "1:2:3:4",
        ] {
            assert!(bad.parse::<Publish>().unwrap_err().contains(&format!("`{bad}`")), "{bad}");
        }
    }

    #[test]
    fn what_is_open_to_all_says_so() {
        let places = |t: &str| t.parse::<Publish>().unwrap().places();
        assert_eq!(places("127.0.0.1:1:2"), "127.0.0.1:1");
        assert_eq!(places("1:2"), "127.0.0.1:1 and every other address of this host");
    }

    #[test]
    fn all_addresses_collide_with_one() {
        let p = |t: &str| t.parse::<Publish>().unwrap();
        assert!(p("1:2").collides(&p("127.0.0.1:1:9")));
        assert!(!p("127.0.0.2:1:2").collides(&p("127.0.0.1:1:2")));
        assert!(!p("2:2").collides(&p("1:2")));
    }
}
