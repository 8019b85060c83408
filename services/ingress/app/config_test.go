package app_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/services/ingress/app"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	load := func(text string) []string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "ingress.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := daemon.Load[app.Config](path)
		var fields []string
		for _, v := range errs.ViolationsOf(err) {
			fields = append(fields, v.Field)
		}
		if err != nil && len(fields) == 0 {
			t.Fatal(err)
		}
		return fields
	}
	common := "listen: :7443\nidentity: /etc/podwire\netcd: {endpoints: ['https://etcd:2379']}\n"
	good := common + "peers: {cluster: 'dns:///cluster:7443', ipam: 'dns:///ipam:7443'}\nsecretsKey: /etc/podwire/secrets.key\n" +
		"member: {name: ingress-1, underlay: [192.0.2.1]}\nlimits: {connections: 10, idleTimeout: 1m}\ntrustedProxies: [10.0.0.0/8]\n"
	if got := load(good); got != nil {
		t.Errorf("a good file: %v", got)
	}
	bad := common + "ingressClass: {name: '', default: true}\nmember: {name: dns-1}\nlimits: {connections: 0, drain: 1m}\ntrustedProxies: [10.0.0.1/8]\n"
	want := []string{"trustedProxies[0]", "peers.cluster", "peers.ipam", "secretsKey", "ingressClass.default", "limits.connections", "limits.drain", "member.name"}
	if got := load(bad); !slices.Equal(got, want) {
		t.Errorf("a bad file: %v, want %v", got, want)
	}
}
