// Package etcdserver is the store of `podwire up`: etcd's own server as one more child process, with one member.
//
// In: a configuration file and an identity directory. Out: etcd on its client port, over mutual TLS 1.3, for services only.
// Invariants: a client needs a certificate with the name pki.EtcdClient, since the same CA signs nodes and users; every
// write is synced to disk; history is compacted after an hour; a store that begins without data has a cluster id that no
// other has. The package must not read or write any key.
package etcdserver

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
)

// Name is the service's name.
const Name = "etcd"

// Config is the configuration file.
type Config struct {
	daemon.Common `yaml:",inline"`
	// DataDir is where etcd keeps its data; it is made with mode 0700.
	DataDir string `yaml:"dataDir"`
	// PeerPort is a port on loopback: etcd insists on one, although a single member has no peers.
	PeerPort int `yaml:"peerPort"`
	// QuotaBytes is the size of the data at which etcd takes no more writes.
	QuotaBytes int64 `yaml:"quotaBytes"`
}

// The defaults, and the limits that contracts.md sets for a transaction.
const (
	defaultPeerPort = 2380
	defaultQuota    = 4 << 30
	maxTxnOps       = 128
	maxRequestBytes = 3 << 19 // 1.5 MiB
	compactAfter    = time.Hour
	// snapshotCount is after how many transactions the log is cut.
	snapshotCount = 10_000
	startTime     = 30 * time.Second
)

// SetDefaults fills in what the file may leave out.
func (c *Config) SetDefaults() { c.PeerPort, c.QuotaBytes = defaultPeerPort, defaultQuota }

// Check returns what is wrong with the file.
func (c *Config) Check() []errs.Violation {
	var out []errs.Violation
	if addr, err := netip.ParseAddrPort(c.Listen); err != nil || addr.Port() == 0 {
		out = append(out, errs.Violation{Field: "listen", Value: c.Listen, Rule: "must be an IP address and a port, such as 192.0.2.1:2379"})
	}
	if !filepath.IsAbs(c.DataDir) {
		out = append(out, errs.Violation{Field: "dataDir", Value: c.DataDir, Rule: "must be an absolute path"})
	}
	if c.PeerPort < 1 || c.PeerPort > 65535 {
		out = append(out, errs.Violation{Field: "peerPort", Value: strconv.Itoa(c.PeerPort), Rule: "must be between 1 and 65535"})
	}
	if c.QuotaBytes < 16<<20 {
		out = append(out, errs.Violation{Field: "quotaBytes", Value: strconv.FormatInt(c.QuotaBytes, 10), Rule: "must be at least 16777216 (16 MiB)"})
	}
	return out
}

// Main runs etcd; args are those after the service's name.
func Main(args []string) int {
	return daemon.Main(args, daemon.Program[Config]{Service: Name, Run: run, Enrol: rpc.Enrol, Healthcheck: rpc.Healthcheck})
}

func run(ctx context.Context, d *daemon.Daemon, cfg Config) error {
	server, err := embed.StartEtcd(settings(cfg))
	if err != nil {
		return errs.WrapAs(errs.Unavailable, err, "etcd: start")
	}
	d.OnStop(daemon.StageStore, "etcd", func(context.Context) error {
		server.Close()
		return nil
	})
	timer := time.NewTimer(startTime)
	defer timer.Stop()
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		return errs.WrapAs(errs.Unavailable, err, "etcd: start")
	case <-timer.C:
		return errs.New(errs.Unavailable, "etcd: start: has not elected itself within %s", startTime)
	case <-ctx.Done():
		return nil
	}
	d.Go("etcd", func(ctx context.Context) error {
		select {
		case err := <-server.Err():
			return errs.WrapAs(errs.Unavailable, err, "etcd")
		case <-server.Server.StopNotify():
			return errs.New(errs.Unavailable, "etcd: stopped by itself")
		case <-ctx.Done():
			return nil
		}
	})
	d.Ready()
	return nil
}

// settings are etcd's own.
func settings(cfg Config) *embed.Config {
	e := embed.NewConfig()
	e.Name, e.Dir = Name, cfg.DataDir
	identity := &e.ClientTLSInfo
	identity.CertFile = filepath.Join(cfg.Identity, pki.CertFile)
	identity.KeyFile = filepath.Join(cfg.Identity, pki.KeyFile)
	identity.TrustedCAFile = filepath.Join(cfg.Identity, pki.CACertFile)
	identity.ClientCertAuth = true
	e.PeerTLSInfo = *identity
	// Only leaves of services carry this name; without it every node could open the store.
	e.ClientTLSInfo.AllowedHostnames = []string{pki.EtcdClient}
	e.PeerTLSInfo.AllowedHostnames = []string{Name}
	e.TlsMinVersion = "TLS1.3"

	client := url.URL{Scheme: "https", Host: cfg.Listen}
	peer := url.URL{Scheme: "https", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.PeerPort))}
	e.ListenClientUrls, e.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	e.ListenPeerUrls, e.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	e.InitialCluster = e.InitialClusterFromName(e.Name)
	// The cluster id of a store that begins with no data follows from this token and the peer's address, which is always the
	// same. A store whose data was lost has to be another one; one that has data keeps its id.
	e.InitialClusterToken = rand.Text()
	e.EnableGRPCGateway = false

	e.AutoCompactionMode, e.AutoCompactionRetention = embed.CompactorModePeriodic, compactAfter.String()
	e.QuotaBackendBytes = cfg.QuotaBytes
	e.SnapshotCount = snapshotCount
	e.MaxTxnOps, e.MaxRequestBytes = maxTxnOps, maxRequestBytes

	e.LogOutputs = []string{"stderr"}
	e.LogLevel = zapcore.WarnLevel.String()
	if cfg.Log.Level == "debug" {
		e.LogLevel = zapcore.DebugLevel.String()
	}
	return e
}
