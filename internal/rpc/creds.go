package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

// Credentials are who this process is and whom it trusts, read from an identity
// directory and read again when its files change: each handshake uses the newest
// complete state, so a rotated leaf needs no restart. Safe for concurrent use.
type Credentials struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	loaded *pki.Loaded
	stamp  [3]stamp
	failed [3]stamp // the state that was refused, to report it once
}

// stamp tells versions of a file apart: a rename changes the inode, a write the rest.
type stamp struct {
	ino   uint64
	size  int64
	mtime time.Time
}

// LoadCredentials reads an identity directory; see pki.LoadIdentity for errors. The
// log, which may be nil, gets a later state of the files that cannot be used.
func LoadCredentials(dir string, log *slog.Logger) (*Credentials, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Credentials{dir: dir, log: log}
	stamps, err := c.stamps()
	if err != nil {
		return nil, errs.WrapAs(errs.NotFound, err, "rpc: credentials")
	}
	loaded, err := pki.LoadIdentity(dir)
	if err != nil {
		return nil, errs.Wrap(err, "rpc: credentials")
	}
	c.loaded, c.stamp = loaded, stamps
	return c, nil
}

func (c *Credentials) stamps() (out [3]stamp, err error) {
	for i, name := range []string{pki.CACertFile, pki.CertFile, pki.KeyFile} {
		info, err := os.Stat(filepath.Join(c.dir, name))
		if err != nil {
			return out, err
		}
		out[i] = stamp{inode(info), info.Size(), info.ModTime()}
	}
	return out, nil
}

func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// Current is the newest complete state of the directory. Files that are missing or do
// not fit together, as in the middle of a rotation, leave the last good state in use.
func (c *Credentials) Current() *pki.Loaded {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.stamps()
	if err != nil || now == c.stamp || now == c.failed {
		return c.loaded
	}
	loaded, err := pki.LoadIdentity(c.dir)
	if err == nil && loaded.ID != c.loaded.ID {
		err = errs.New(errs.Invalid, "certificate is of %s, not of %s", loaded.ID, c.loaded.ID)
	}
	if err != nil {
		c.failed = now
		c.log.Warn("changed identity cannot be used; the last good one stays", "error", err)
		return c.loaded
	}
	c.loaded, c.stamp = loaded, now
	c.log.Info("identity reloaded", "identity", loaded.ID.String(), "expires", loaded.Leaf.NotAfter)
	return c.loaded
}

// Identity is who this process is.
func (c *Credentials) Identity() Identity { return c.Current().ID }

// ClientTLS is the TLS configuration for a client of something else than our gRPC,
// which is etcd: our leaf, and a server that the CA vouches for under server's identity
// and DNS name.
func (c *Credentials) ClientTLS(server Identity) *tls.Config {
	return &tls.Config{
		MinVersion: minTLS,
		ServerName: server.Name,
		// Go's own verification would keep the CA pool of the start; verify below does
		// everything that it does, with the newest pool, and then more.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return verifyServer(cs, c.Current().CAs, server) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &c.Current().TLS, nil
		},
	}
}

// client is ClientTLS for gRPC.
func (c *Credentials) client(server Identity) credentials.TransportCredentials {
	return credentials.NewTLS(c.ClientTLS(server))
}

// anonymousClient trusts a CA and shows no certificate: for the one RPC that needs none.
func anonymousClient(cas *x509.CertPool, server Identity) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion:         minTLS,
		ServerName:         server.Name,
		InsecureSkipVerify: true, // verifyServer does all of it, see ClientTLS
		VerifyConnection:   func(cs tls.ConnectionState) error { return verifyServer(cs, cas, server) },
	})
}

// verifyServer checks chain, validity, usage, DNS name and SPIFFE identity. The kind is
// part of it: a node that is called like a service is not that service.
func verifyServer(cs tls.ConnectionState, cas *x509.CertPool, server Identity) error {
	if len(cs.PeerCertificates) == 0 {
		return errs.New(errs.Denied, "server %s: shows no certificate", server)
	}
	leaf := cs.PeerCertificates[0]
	inter := x509.NewCertPool()
	for _, cert := range cs.PeerCertificates[1:] {
		inter.AddCert(cert)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		DNSName: server.Name, Roots: cas, Intermediates: inter,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return errs.WrapAs(errs.Denied, err, "server %s", server)
	}
	id, err := pki.FromURIs(leaf.URIs)
	if err != nil {
		return errs.Wrap(err, "server %s", server)
	}
	if id != server {
		return errs.New(errs.Denied, "server %s: its certificate is of %s", server, id)
	}
	return nil
}

// server is TLS 1.3 that asks for a client certificate and verifies one if it is given.
// Who shows none is Anonymous, and the access table decides.
func (c *Credentials) server() credentials.TransportCredentials {
	config := func() *tls.Config {
		now := c.Current()
		return &tls.Config{
			MinVersion:   minTLS,
			NextProtos:   []string{"h2"},
			Certificates: []tls.Certificate{now.TLS},
			ClientAuth:   tls.VerifyClientCertIfGiven,
			ClientCAs:    now.CAs,
			// A resumed session would carry a certificate that may be gone by now.
			SessionTicketsDisabled: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				_, err := peerIdentity(cs)
				return err
			},
		}
	}
	base := config()
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return config(), nil }
	return credentials.NewTLS(base)
}

// peerIdentity is the identity that a verified client certificate gives.
func peerIdentity(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return pki.Anonymous, nil
	}
	if len(cs.VerifiedChains) == 0 {
		return Identity{}, errs.New(errs.Denied, "client certificate: is not verified")
	}
	return pki.FromURIs(cs.VerifiedChains[0][0].URIs)
}

// unixCreds are the credentials of a unix socket: the uid of the peer, which the kernel
// vouches for (SO_PEERCRED, unix(7)), has to be 0 on both sides.
type unixCreds struct{}

// unixAuth is the AuthInfo of a connection on a unix socket.
type unixAuth struct {
	credentials.CommonAuthInfo
	uid uint32
}

// AuthType names the mechanism, as credentials.AuthInfo.
func (unixAuth) AuthType() string { return "unix-peercred" }

// ClientHandshake checks that a server of root answers.
func (unixCreds) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return checkPeer(conn, "server")
}

// ServerHandshake checks that root calls.
func (unixCreds) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return checkPeer(conn, "client")
}

// Info describes the protocol, as credentials.TransportCredentials.
func (unixCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peercred"}
}

// Clone returns an equal value: there is no state.
func (u unixCreds) Clone() credentials.TransportCredentials { return u }

// OverrideServerName does nothing: a socket's name is its path.
func (unixCreds) OverrideServerName(string) error { return nil }

func checkPeer(conn net.Conn, side string) (net.Conn, credentials.AuthInfo, error) {
	uid, err := peerUID(conn)
	if err != nil {
		return nil, nil, errs.WrapAs(errs.Denied, err, "unix socket: credentials of the %s", side)
	}
	if uid != 0 {
		return nil, nil, errs.New(errs.Denied, "unix socket: the %s has uid %d: must be root", side, uid)
	}
	return conn, unixAuth{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, uid}, nil
}

func peerUID(conn net.Conn) (uint32, error) {
	if c, ok := conn.(*counted); ok {
		conn = c.Conn
	}
	uc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, errs.New(errs.Internal, "%T has no file descriptor", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var serr error
	err = raw.Control(func(fd uintptr) {
		cred, serr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil {
		return 0, err
	}
	if serr != nil {
		return 0, serr
	}
	return cred.Uid, nil
}
