package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	small     = 10
	large     = 1000
	endpoints = 10 // of each Service
)

// BenchmarkEndpointChange writes one EndpointSlice and waits until it is in the kernel of every node, with 10 Services
// and with 1,000 of ten endpoints each. The goal is a ratio of 1.
func BenchmarkEndpointChange(b *testing.B) {
	p := up(b)
	p.apply(b, services(0, small))
	few := p.changes(b)
	p.apply(b, services(small, large))
	for b.Loop() {
		many := p.changes(b)
		b.ReportMetric(float64(few.Milliseconds()), "ms-at-10")
		b.ReportMetric(float64(many.Milliseconds()), "ms-at-1000")
		b.ReportMetric(float64(many)/float64(few), "ratio")
	}
	b.ReportMetric(0, "ns/op")
}

// podwire is one instance.
type podwire struct{ bin, state string }

func up(b *testing.B) podwire {
	b.Helper()
	bin := os.Getenv("PODWIRE_BINARY")
	if bin == "" {
		bin = filepath.Join("..", "bin", "podwire")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		b.Fatal(err)
	}
	p := podwire{bin: bin, state: filepath.Join(b.TempDir(), "state")}
	b.Cleanup(func() { p.run(b, "", "down") })
	p.run(b, "", "up")
	return p
}

func (p podwire) run(b *testing.B, stdin string, args ...string) {
	b.Helper()
	cmd := exec.Command(p.bin, append([]string{"--state", p.state}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("podwire %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (p podwire) apply(b *testing.B, manifests string) {
	b.Helper()
	p.run(b, manifests, "apply", "--wait", "--timeout", "5m", "-f", "-")
}

// changes is the median time of a change of one endpoint, the command line included.
func (p podwire) changes(b *testing.B) time.Duration {
	b.Helper()
	var took []time.Duration
	for i := range 41 {
		began := time.Now()
		p.apply(b, slice(0, 100+i%2))
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// services are those from first to before last, each with a slice.
func services(first, last int) string {
	var out strings.Builder
	for n := first; n < last; n++ {
		fmt.Fprintf(&out, "---\n{apiVersion: v1, kind: Service, metadata: {name: s%d}, spec: {ports: [{port: 80}]}}\n%s", n, slice(n, 1))
	}
	return out.String()
}

// slice has ten endpoints of Service n, which begin at host part from.
func slice(n, from int) string {
	var addresses []string
	for i := range endpoints {
		addresses = append(addresses, fmt.Sprintf("{addresses: [10.%d.%d.%d]}", 20+n>>8, n&255, from+i))
	}
	return fmt.Sprintf("---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s%d-1, labels: {kubernetes.io/service-name: s%d}}, "+
		"addressType: IPv4, ports: [{port: 80}], endpoints: [%s]}\n", n, n, strings.Join(addresses, ", "))
}
