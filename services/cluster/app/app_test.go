package app

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/telemetry"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

const patience = 30 * time.Second

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return daemon.Load[Config](path)
}

func TestConfig(t *testing.T) {
	const least = "listen: :7443\nidentity: /pki/cluster\ncaDir: /pki\n"
	cfg, err := load(t, least)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(cfg.Required, " "); got != "cluster ipam svcproxy policy" || cfg.ClusterDomain != "cluster.local" {
		t.Errorf("defaults are %q and %q", got, cfg.ClusterDomain)
	}
	if cfg, err = load(t, least+"required: []\nclusterDomain: pods.example\n"); err != nil || len(cfg.Required) != 0 || cfg.ClusterDomain != "pods.example" {
		t.Errorf("configuration is %+v: %v", cfg, err)
	}
	if cfg, err = load(t, least+"required: [policy, dns, ingress]\n"); err != nil || len(cfg.Required) != 3 {
		t.Errorf("services that answer from their own World: %v, %v", cfg.Required, err)
	}
	for text, want := range map[string]string{
		"listen: :7443\nidentity: /pki/cluster\n": "caDir: is required",
		least + "required: [policy, gateway]\n":   `required[1]: "gateway": must be a service with a watermark`,
		least + "required: [policy, policy]\n":    `required[1]: "policy": must be unique`,
		least + "clusterDomain: Cluster_Local\n":  `clusterDomain: "Cluster_Local": must be a lowercase RFC 1123 subdomain`,
		least + "unknown: 1\n":                    `"unknown": is not a known key here`,
		least + "required: policy\n":              "cannot unmarshal",
	} {
		if _, err := load(t, text); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// service is the whole process on a store in memory, reached through its unix socket.
func service(t *testing.T, caDir string) (context.Context, *grpc.ClientConn, *storefake.Fake) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	fake := storefake.New(Kinds())
	tele, err := telemetry.Setup(ctx, telemetry.Process{Service: Name, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	authority, err := pki.LoadAuthority(caDir)
	if err != nil {
		t.Fatal(err)
	}
	d := daemon.New(daemon.Options{Name: Name, Log: slog.New(slog.DiscardHandler), Telemetry: tele})
	socket := filepath.Join(t.TempDir(), "c.sock")
	ended := make(chan error, 1)
	go func() {
		ended <- d.Run(ctx, func(context.Context) error {
			server, err := rpc.NewServer(rpc.ServerOptions{Socket: socket, Fail: d.Fail, Telemetry: tele})
			if err != nil {
				return err
			}
			cfg := Config{CADir: caDir}
			cfg.SetDefaults()
			Serve(d, fake.Store, server, feed.ReplicaOf(Name, "cluster-1:7443"), cfg, authority)
			return nil
		})
	}()
	conn, err := rpc.Dial("unix://"+socket, pki.Service(Name), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		d.Stop()
		if err := <-ended; err != nil {
			t.Errorf("the service ended with: %v", err)
		}
		cancel()
	})
	return ctx, conn, fake
}

func TestServe(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.Init(dir, pki.Plan{Nodes: []string{"node-1"}}); err != nil {
		t.Fatal(err)
	}
	ctx, conn, fake := service(t, dir)
	// The connection checks health: the first call goes out when the service is SERVING.
	serving := grpc.WaitForReady(true)
	pods := clusterv1.NewPodServiceClient(conn)
	made, err := pods.Apply(ctx, &clusterv1.PodServiceApplyRequest{Object: &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Name: "web"},
		Spec:     &objectv1.PodSpec{Containers: []*objectv1.Container{{Name: "c", Image: "podwire.dev/echo"}}},
	}}, serving)
	if err != nil {
		t.Fatalf("the first Pod in the default namespace, as soon as the service is SERVING: %v", err)
	}
	if _, err := clusterv1.NewNamespaceServiceClient(conn).Get(ctx, &clusterv1.NamespaceServiceGetRequest{Name: "kube-system"}); err != nil {
		t.Error(err)
	}
	if required, err := fake.Required(ctx); err != nil || len(required) != 4 {
		t.Errorf("required is %v: %v", required, err)
	}

	text, err := os.ReadFile(pki.TokenFile(dir, pki.Node("node-1")))
	if err != nil {
		t.Fatal(err)
	}
	csr, _, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	enrolled, err := clusterv1.NewEnrolmentServiceClient(conn).Enroll(ctx, &clusterv1.EnrollRequest{Token: strings.TrimSpace(string(text)), CsrPem: string(csr)})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.ParseCertificate([]byte(enrolled.GetCertificatePem()))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := pki.FromURIs(leaf.URIs); err != nil || id != pki.Node("node-1") {
		t.Errorf("enrolled as %s: %v", id, err)
	}

	// There is no node: what cluster planned for all of them is held by all of them, once the Pod's condition is written.
	wait, err := clusterv1.NewReceiptServiceClient(conn).Wait(ctx, &clusterv1.WaitRequest{Revision: made.GetRevision(), Services: []string{Name}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := wait.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetDone() {
			break
		}
	}
	got, err := pods.Get(ctx, &clusterv1.PodServiceGetRequest{Namespace: "default", Name: "web"})
	if err != nil || len(got.GetObject().GetStatus().GetConditions()) != 1 {
		t.Errorf("the receipt came before the derived write: %v, %v", got, err)
	}
	beats, err := clusterv1.NewLivenessServiceClient(conn).Heartbeat(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := beats.Recv(); !errs.Is(err, errs.Denied) {
		t.Errorf("a heartbeat of somebody who is no node: %v", err)
	}
}

// Each kind that lives in a Namespace must be followed, or a Namespace would go with objects in it.
func TestKindsAreWhole(t *testing.T) {
	registry, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	followed, seen := Kinds(), 0
	for _, kind := range registry.Kinds() {
		if kind.Scope != manifest.Namespaced {
			continue
		}
		seen++
		if kind.StoreKind() == "secrets" {
			continue // only ingress sees them; it deletes those of a Namespace that ends before its watermark passes the end
		}
		if followed[kind.StoreKind()] == nil {
			t.Errorf("%s is not followed", kind.StoreKind())
		}
	}
	if seen == 0 {
		t.Error("the registry has no kind with a namespace")
	}
}
