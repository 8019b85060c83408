package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"podwire.dev/internal/apptest"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/service"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

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

func TestServe(t *testing.T) {
	s := apptest.New(t, Name, Kinds())
	s.Serve(func(r *service.Replica) error {
		cfg := Config{CADir: s.Dir}
		cfg.SetDefaults()
		Serve(r, cfg, s.CA)
		return nil
	})
	ctx, conn := s.Ctx, s.Dial(pki.User("alice"))
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
	if required, err := s.Fake.Required(ctx); err != nil || len(required) != 4 {
		t.Errorf("required is %v: %v", required, err)
	}

	text, err := os.ReadFile(pki.TokenFile(s.Dir, pki.Node("node-1")))
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
