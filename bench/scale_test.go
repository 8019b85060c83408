package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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

// bigSlice is how many endpoints each EndpointSlice of the big Services has.
const bigSlice = 100

// BenchmarkEndpointOfABigService writes one EndpointSlice of a Service of 100 endpoints and of one of 10,000, and waits until it is
// in the kernel of every node. The goal is a ratio of 1.
func BenchmarkEndpointOfABigService(b *testing.B) {
	p := up(b)
	p.apply(b, bigService("some", 30, bigSlice))
	p.apply(b, bigService("many", 40, 10_000))
	for b.Loop() {
		some, cpuOfSome := p.turns(b, "some", 30)
		many, cpuOfMany := p.turns(b, "many", 40)
		b.ReportMetric(some.Seconds()*1e3, "ms-at-100")
		b.ReportMetric(many.Seconds()*1e3, "ms-at-10000")
		b.ReportMetric(float64(many)/float64(some), "ratio")
		b.ReportMetric(cpuOfSome.Seconds()*1e3, "cpu-ms-at-100")
		b.ReportMetric(cpuOfMany.Seconds()*1e3, "cpu-ms-at-10000")
		b.ReportMetric(float64(cpuOfMany)/float64(cpuOfSome), "cpu-ratio")
	}
	b.ReportMetric(0, "ns/op")
}

// turns is the median time in which one endpoint of a big Service is gone, or back, and what CPU each costs all processes of
// the instance together.
func (p podwire) turns(b *testing.B, name string, net int) (took, cpu time.Duration) {
	b.Helper()
	const turns = 40
	p.apply(b, sliceOf(name, net, 0, bigSlice-1)) // what is found out once
	p.apply(b, sliceOf(name, net, 0, bigSlice))
	var times []time.Duration
	before := p.cpu(b)
	for i := range turns {
		began := time.Now()
		p.apply(b, sliceOf(name, net, 0, bigSlice-1+i%2))
		times = append(times, time.Since(began))
	}
	cpu = (p.cpu(b) - before) / turns
	slices.Sort(times)
	return times[len(times)/2], cpu
}

// cpu is the time that the instance's processes have run, from proc_pid_stat(5): utime and stime, in ticks of 10 ms.
func (p podwire) cpu(b *testing.B) time.Duration {
	b.Helper()
	list, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		b.Fatal(err)
	}
	ticks := 0
	for _, dir := range list {
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(string(command), p.state) {
			continue // gone, or another's
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		_, fields, _ := strings.Cut(string(stat), ") ")
		for _, at := range []int{11, 12} { // of the fields after the name
			n, err := strconv.Atoi(strings.Fields(fields)[at])
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func bigService(name string, net, endpoints int) string {
	var out strings.Builder
	fmt.Fprintf(&out, "---\n{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {ports: [{port: 80}]}}\n", name)
	for n := range endpoints / bigSlice {
		out.WriteString(sliceOf(name, net, n, bigSlice))
	}
	return out.String()
}

// sliceOf is slice n of a big Service, with as many of its endpoints as are said.
func sliceOf(name string, net, n, endpoints int) string {
	var addresses []string
	for i := range endpoints {
		addresses = append(addresses, fmt.Sprintf("{addresses: [10.%d.%d.%d]}", net, n, 1+i))
	}
	return fmt.Sprintf("---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: %s-%d, labels: {kubernetes.io/service-name: %s}}, "+
		"addressType: IPv4, ports: [{port: 80}], endpoints: [%s]}\n", name, n, name, strings.Join(addresses, ", "))
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
