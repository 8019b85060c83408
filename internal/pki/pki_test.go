package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/seal"
)

func initialised(t *testing.T, plan pki.Plan) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := pki.Init(dir, plan); err != nil {
		t.Fatal(err)
	}
	return dir
}

// contents maps every file below dir to its mode, time and content.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		out[name] = info.Mode().String() + " " + info.ModTime().String() + "\n" + string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInitIsIdempotent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plan := pki.Plan{Services: []string{"ipam", "policy"}, Nodes: []string{"node-1"}}
	first, err := pki.Init(dir, plan)
	if err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	modes := map[string]string{
		"ca.crt": "-rw-r--r--", "ca.key": "-rw-------", "tokens.json": "-rw-------", "secrets.key": "-rw-------",
		"etcd/ca.crt": "-rw-r--r--", "etcd/tls.crt": "-rw-r--r--", "etcd/tls.key": "-rw-------",
		"cluster/ca.crt": "-rw-r--r--", "cluster/tls.crt": "-rw-r--r--", "cluster/tls.key": "-rw-------",
		"admin/ca.crt": "-rw-r--r--", "admin/tls.crt": "-rw-r--r--", "admin/tls.key": "-rw-------",
		"tokens/service-ipam.token": "-rw-------", "tokens/service-policy.token": "-rw-------", "tokens/node-node-1.token": "-rw-------",
	}
	if len(before) != len(modes) || len(first.Created) != len(modes) || first.Unchanged() {
		t.Errorf("made %v", first.Created)
	}
	for name, mode := range modes {
		if !strings.HasPrefix(before[name], mode) {
			t.Errorf("%s: mode %.10s, want %s", name, before[name], mode)
		}
		if !slices.Contains(first.Created, name) {
			t.Errorf("%s is not reported", name)
		}
	}
	second, err := pki.Init(dir, plan)
	if err != nil {
		t.Fatal(err)
	}
	if !second.Unchanged() {
		t.Errorf("the second time made %v", second.Created)
	}
	for name, was := range before {
		if is := contents(t, dir)[name]; is != was {
			t.Errorf("%s changed", name)
		}
	}
	// A node more: its token, and nothing else.
	plan.Nodes = append(plan.Nodes, "node-2")
	third, err := pki.Init(dir, plan)
	if err != nil || !slices.Equal(third.Created, []string{"tokens.json", "tokens/node-node-2.token"}) {
		t.Errorf("one more node made %v, %v", third.Created, err)
	}
}

func TestInitKeepsTokensThatWereHandedOver(t *testing.T) {
	t.Parallel()
	dir := initialised(t, pki.Plan{Services: []string{"ipam"}})
	if err := os.Remove(pki.TokenFile(dir, pki.Service("ipam"))); err != nil {
		t.Fatal(err)
	}
	if r, err := pki.Init(dir, pki.Plan{Services: []string{"ipam"}}); err != nil || !r.Unchanged() {
		t.Errorf("made %v, %v: the token handed over would be void", r.Created, err)
	}
}

func TestInitFinishesWhatWasInterrupted(t *testing.T) {
	t.Parallel()
	for _, missing := range [][]string{{"ca.crt", "etcd", "cluster", "admin"}, {"cluster/tls.crt"}, {"admin"}, {"tokens.json"}, {"secrets.key"}} {
		dir := initialised(t, pki.Plan{Nodes: []string{"node-1"}})
		for _, name := range missing {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := pki.Init(dir, pki.Plan{Nodes: []string{"node-1"}}); err != nil {
			t.Errorf("without %v: %v", missing, err)
			continue
		}
		for _, name := range []string{"etcd", "cluster", "admin"} {
			if _, err := pki.LoadIdentity(filepath.Join(dir, name)); err != nil {
				t.Errorf("without %v: %v", missing, err)
			}
		}
		if _, err := redeemFile(t, dir, pki.Node("node-1")); err != nil {
			t.Errorf("without %v: %v", missing, err)
		}
	}
}

func TestInitRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what  string
		spoil func(t *testing.T, dir string)
		want  string
	}{
		{"a lost CA", func(t *testing.T, dir string) {
			mustRemove(t, filepath.Join(dir, "ca.crt"))
		}, "restore the CA"},
		{"a leaf of another CA", func(t *testing.T, dir string) {
			other := initialised(t, pki.Plan{})
			for _, f := range []string{"tls.crt", "tls.key", "ca.crt"} {
				copyFile(t, filepath.Join(other, "etcd", f), filepath.Join(dir, "etcd", f))
			}
		}, "was not signed by this CA"},
		{"a leaf in the wrong place", func(t *testing.T, dir string) {
			for _, f := range []string{"tls.crt", "tls.key"} {
				copyFile(t, filepath.Join(dir, "admin", f), filepath.Join(dir, "etcd", f))
			}
		}, "is the leaf of /user/admin, not of /service/etcd"},
		{"a key of another CA", func(t *testing.T, dir string) {
			copyFile(t, filepath.Join(initialised(t, pki.Plan{}), "ca.key"), filepath.Join(dir, "ca.key"))
		}, "does not belong to the CA certificate"},
		{"broken records", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "tokens.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "token records"},
		{"broken keys of Secrets", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "secrets.key"), []byte("v1 a b\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "secrets.key: line 1: key a must be 32 bytes"},
		{"keys of Secrets that everybody reads", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "secrets.key"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "must not be open to everybody"},
	} {
		dir := initialised(t, pki.Plan{})
		tt.spoil(t, dir)
		before := contents(t, dir)
		if _, err := pki.Init(dir, pki.Plan{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.what, err, tt.want)
		}
		if len(contents(t, dir)) != len(before) {
			t.Errorf("%s: a refusal changes nothing", tt.what)
		}
	}
	for _, plan := range []pki.Plan{{Nodes: []string{"Node_1"}}, {Nodes: []string{"etcd"}}, {Services: []string{""}}, {Nodes: []string{"../x"}}} {
		if _, err := pki.Init(t.TempDir(), plan); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v, want Invalid", plan, err)
		}
	}
}

func TestLoadKeys(t *testing.T) {
	t.Parallel()
	dir := initialised(t, pki.Plan{})
	path := filepath.Join(dir, pki.SecretsKeyFile)
	ring, err := pki.LoadKeys(path)
	if err != nil || len(ring.IDs()) != 1 {
		t.Fatalf("loaded %v, %v", ring, err)
	}
	// Another key on top: both are read, the new one seals.
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fresh := seal.NewKey()
	if err := os.WriteFile(path, append([]byte(fresh.Line()), old...), 0o600); err != nil {
		t.Fatal(err)
	}
	rotated, err := pki.LoadKeys(path)
	if err != nil || !slices.Equal(rotated.IDs(), []string{fresh.ID(), ring.IDs()[0]}) {
		t.Errorf("loaded %v, %v", rotated, err)
	}
	if r, err := pki.Init(dir, pki.Plan{}); err != nil || !r.Unchanged() {
		t.Errorf("made %v, %v", r.Created, err)
	}
	if _, err := pki.LoadKeys(filepath.Join(dir, "none")); !errs.Is(err, errs.NotFound) {
		t.Errorf("no file: %v", err)
	}
	if _, err := pki.LoadKeys(dir); !errs.Is(err, errs.Invalid) {
		t.Errorf("a directory: %v", err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("#\n"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.LoadKeys(path); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("a file too large: %v", err)
	}
}

func mustRemove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestLeafNames(t *testing.T) {
	t.Parallel()
	dir := initialised(t, pki.Plan{})
	ca, err := pki.LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		id    pki.Identity
		uri   string
		dns   []string
		usage []x509.ExtKeyUsage
	}{
		{pki.Service("ipam"), "spiffe://podwire/service/ipam", []string{"ipam", "localhost", "etcd-client"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}},
		{pki.Node("node-1"), "spiffe://podwire/node/node-1", []string{"node-1", "nodeagent", "localhost"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}},
		{pki.User("admin"), "spiffe://podwire/user/admin", nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	} {
		// What the request asks for must not matter.
		certPEM, err := ca.SignStandard(greedyRequest(t), tt.id)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pki.ParseCertificate(certPEM)
		if err != nil {
			t.Fatal(err)
		}
		if len(cert.URIs) != 1 || cert.URIs[0].String() != tt.uri || !slices.Equal(cert.DNSNames, tt.dns) ||
			!slices.Equal(cert.ExtKeyUsage, tt.usage) || cert.IsCA || cert.Subject.CommonName != tt.id.String() {
			t.Errorf("%s: %v %v %v CA=%v %s", tt.id, cert.URIs, cert.DNSNames, cert.ExtKeyUsage, cert.IsCA, cert.Subject)
		}
		if life := cert.NotAfter.Sub(cert.NotBefore); life < 90*24*time.Hour || life > 91*24*time.Hour {
			t.Errorf("%s: lives %s", tt.id, life)
		}
		if id, err := pki.FromURIs(cert.URIs); err != nil || id != tt.id {
			t.Errorf("%s: read back as %s, %v", tt.id, id, err)
		}
	}
}

// greedyRequest asks for names and rights that nobody gave.
func greedyRequest(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "/user/admin"}, DNSNames: []string{"cluster", "etcd-client"},
		URIs: []*url.URL{pki.Service("cluster").URI()}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestSign(t *testing.T) {
	t.Parallel()
	ca, err := pki.LoadAuthority(initialised(t, pki.Plan{}))
	if err != nil {
		t.Fatal(err)
	}
	csr, _, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.Sign(csr, pki.Node("n"), []string{"n"}, []netip.Addr{netip.MustParseAddr("fd00::1")}, 100*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := pki.ParseCertificate(certPEM)
	caCert, _ := pki.ParseCertificate(ca.CAPEM())
	if !cert.NotAfter.Equal(caCert.NotAfter) {
		t.Error("a leaf must not outlive its CA")
	}
	if len(cert.IPAddresses) != 1 || cert.IPAddresses[0].String() != "fd00::1" {
		t.Errorf("addresses %v", cert.IPAddresses)
	}

	tampered := slices.Clone(csr)
	block, _ := pem.Decode(tampered)
	block.Bytes[len(block.Bytes)-1] ^= 1
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "a certificate": certPEM, "two requests": slices.Concat(csr, csr),
		"a broken signature": pem.EncodeToMemory(block),
		"an RSA key":         pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: rsaDER}),
	} {
		if _, err := ca.SignStandard(bad, pki.Node("n")); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want Invalid", what, err)
		}
	}
	for _, id := range []pki.Identity{{}, pki.Anonymous, pki.Node("cluster"), pki.Node("a/b"), {Kind: "root", Name: "x"}} {
		if _, err := ca.SignStandard(csr, id); !errs.Is(err, errs.Invalid) {
			t.Errorf("%#v: %v, want Invalid", id, err)
		}
	}
	if _, err := ca.Sign(csr, pki.Node("n"), nil, nil, 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("no lifetime: %v", err)
	}
}

func TestRequestKeyID(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, err := pki.PendingKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := pki.PendingKey(dir)
	if err != nil || string(again) != string(key) {
		t.Fatal("an enrolment goes on with the key that it began with")
	}
	ids := map[string]struct{}{}
	for _, k := range [][]byte{key, again} {
		csr, err := pki.RequestFor(k)
		if err != nil {
			t.Fatal(err)
		}
		id, err := pki.RequestKeyID(csr)
		if err != nil {
			t.Fatal(err)
		}
		ids[id] = struct{}{}
	}
	if len(ids) != 1 {
		t.Error("requests of one key have one id")
	}
	if err := pki.DropPendingKey(dir); err != nil {
		t.Fatal(err)
	}
	if err := pki.DropPendingKey(dir); err != nil {
		t.Errorf("dropping twice: %v", err)
	}
	if other, err := pki.PendingKey(dir); err != nil || string(other) == string(key) {
		t.Error("a new enrolment has a new key")
	}
}

func TestIdentityText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		path string
		want pki.Identity
		ok   bool
	}{
		{"/node/node-1.example", pki.Node("node-1.example"), true},
		{"/service/ipam", pki.Service("ipam"), true},
		{"/user/root", pki.User("root"), true},
		{"/node/" + strings.Repeat("a", 63), pki.Node(strings.Repeat("a", 63)), true},
		{"/node/" + strings.Repeat("a", 64), pki.Identity{}, false},
		{"/node/", pki.Identity{}, false},
		{"/node/a..b", pki.Identity{}, false},
		{"/node/a/b", pki.Identity{}, false},
		{"/node/-a", pki.Identity{}, false},
		{"/node/a-", pki.Identity{}, false},
		{"/node/A", pki.Identity{}, false},
		{"/node/svcproxy", pki.Identity{}, false},
		{"/anonymous", pki.Identity{}, false},
		{"/anonymous/x", pki.Identity{}, false},
		{"node/x", pki.Identity{}, false},
		{"", pki.Identity{}, false},
	} {
		id, err := pki.ParseIdentity(tt.path)
		if (err == nil) != tt.ok || id != tt.want {
			t.Errorf("%q: %s, %v", tt.path, id, err)
		}
	}
	for _, uri := range []string{
		"https://podwire/node/x", "spiffe://other/node/x", "spiffe://podwire/node/x?y", "spiffe://podwire/node/x#y",
		"spiffe://u@podwire/node/x", "spiffe://podwire/node/a%2fb", "spiffe://podwire:1/node/x", "spiffe://podwire",
	} {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pki.FromURIs([]*url.URL{u}); !errs.Is(err, errs.Denied) {
			t.Errorf("%s: %v, want Denied", uri, err)
		}
	}
	x := pki.Node("x").URI()
	for _, uris := range [][]*url.URL{nil, {x, x}} {
		if _, err := pki.FromURIs(uris); !errs.Is(err, errs.Denied) {
			t.Errorf("%d URIs: %v, want Denied", len(uris), err)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("/node/node-1")
	f.Add("/service/ipam")
	f.Fuzz(func(t *testing.T, path string) {
		id, err := pki.ParseIdentity(path)
		if err != nil {
			return
		}
		if id.String() != path {
			t.Errorf("%q is read as %q", path, id)
		}
		u, err := url.Parse(id.URI().String())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := pki.FromURIs([]*url.URL{u}); err != nil || again != id {
			t.Errorf("%q: its URI reads as %s, %v", path, again, err)
		}
	})
}
