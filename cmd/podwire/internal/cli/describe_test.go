package cli

import (
	"os/exec"
	"strings"
	"testing"

	"podwire.dev/cmd/podwire/internal/session"
)

// The scripts are cobra's; what matters here is that each shell gets its own, for this program, and that it parses.
func TestCompletionScripts(t *testing.T) {
	f := newFake(t)
	for shell, want := range map[string]string{
		"bash": "__start_podwire", "zsh": "#compdef podwire", "fish": "complete -c podwire", "powershell": "-CommandName 'podwire'",
	} {
		got := f.run(t.Context(), strings.NewReader(""), "completion", shell)
		if got.status != session.ExitOK || got.err != "" || !strings.Contains(got.out, want) || !strings.Contains(got.out, "__complete") {
			t.Errorf("%s: exit %d, %q, %d bytes without %q", shell, got.status, got.err, len(got.out), want)
		}
		if shell != "bash" {
			continue
		}
		check := exec.CommandContext(t.Context(), "bash", "-n")
		check.Stdin = strings.NewReader(got.out)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("bash refuses its script: %v\n%s", err, out)
		}
	}
}

// Whatever is described, no value of a Secret is in the text.
func TestDescribeShowsNoSecret(t *testing.T) {
	f := newFake(t)
	f.objects = f.load(`
apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: default}
type: kubernetes.io/tls
data: {tls.crt: c3dvcmRmaXNo, tls.key: c3dvcmRmaXNo}
stringData: {other: swordfish}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: default}
spec: {tls: [{secretName: tls}], rules: [{}]}
`)
	for _, line := range []string{"describe secret tls", "describe ingress web", "get secrets", "get secrets -o wide", "get secrets -o name"} {
		got := f.run(t.Context(), strings.NewReader(""), strings.Fields(line)...)
		if got.status != session.ExitOK || strings.Contains(got.out+got.err, "swordfish") || strings.Contains(got.out+got.err, "c3dvcmRmaXNo") {
			t.Errorf("%s: exit %d\n%s%s", line, got.status, got.out, got.err)
		}
	}
}
