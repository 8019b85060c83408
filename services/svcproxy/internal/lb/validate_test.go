package lb_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
)

// spec makes a Service from the YAML of its spec, in flow or block style.
func spec(t testing.TB, text string) *objectv1.Service {
	t.Helper()
	text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
	return objects(t, text)[0].(*objectv1.Service)
}

// complete does what an Apply does before it asks ipam.
func complete(o, old *objectv1.Service, have lb.Families) []errs.Violation {
	lb.CarryService(o, old)
	lb.DefaultService(o, have)
	return lb.ValidateService(o, old, have)
}

func check(t *testing.T, bad []errs.Violation, want []string) {
	t.Helper()
	var got []string
	for _, v := range bad {
		got = append(got, v.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestValidateService(t *testing.T) {
	only4 := lb.Families{lb.IPv4}
	for _, c := range []struct {
		name, spec string
		have       lb.Families
		want       []string
	}{
		{"smallest", `ports: [{port: 80}]`, both, nil},
		{"no ports", `selector: {app: x}`, both, []string{`spec.ports: is required`}},
		{"headless without ports", `clusterIP: None`, both, nil},
		{"ExternalName without ports", `{type: ExternalName, externalName: example.com.}`, both, nil},
		{"type", `{type: Cluster, ports: [{port: 80}]}`, both, []string{`spec.type: "Cluster": must be one of: ClusterIP, NodePort, LoadBalancer, ExternalName`}},
		{"port ranges", `ports: [{name: a, port: 0, targetPort: 1}, {name: b, port: 65536, targetPort: 70000}]`, both, []string{
			`spec.ports[0].port: "0": must be between 1 and 65535, inclusive`,
			`spec.ports[1].port: "65536": must be between 1 and 65535, inclusive`,
			`spec.ports[1].targetPort: "70000": must be between 1 and 65535, inclusive`,
		}},
		{"port names", `ports: [{port: 80}, {name: A, port: 81}, {name: b, port: 82}, {name: b, port: 83}]`, both, []string{
			`spec.ports[0].name: is required where there are several ports`,
			`spec.ports[1].name: "A": must be a lowercase RFC 1123 label: lower case letters, digits or '-', beginning and ending with a letter or digit`,
			`spec.ports[3].name: "b": is a duplicate`,
		}},
		{"duplicate ports", `ports: [{name: a, port: 53}, {name: b, port: 53, protocol: UDP}, {name: c, port: 53}]`, both, []string{
			`spec.ports[2]: "TCP 53": is a duplicate: port and protocol are those of another port`,
		}},
		{"protocol", `ports: [{port: 53, protocol: ICMP}]`, both, []string{`spec.ports[0].protocol: "ICMP": must be one of: SCTP, TCP, UDP`}},
		{"target name", `ports: [{port: 53, targetPort: "-x"}]`, both, []string{
			`spec.ports[0].targetPort: "-x": must not begin or end with a hyphen, nor contain two in a row`,
		}},
		{"node port of ClusterIP", `ports: [{port: 80, nodePort: 30080}]`, both, []string{
			`spec.ports[0].nodePort: "30080": may not be used when ` + "`type` is 'ClusterIP'",
		}},
		{"duplicate node ports", `{type: NodePort, ports: [{name: a, port: 1, nodePort: 30001}, {name: b, port: 1, protocol: UDP, nodePort: 30001}, {name: c, port: 2, nodePort: 30001}]}`, both, []string{
			`spec.ports[2].nodePort: "30001": is a duplicate: another port has it for the same protocol`,
		}},
		{"headless NodePort", `{type: NodePort, clusterIP: None, ports: [{port: 80}]}`, both, []string{
			`spec.clusterIPs[0]: "None": may not be set to 'None' for NodePort services`,
		}},
		{"ExternalName", `{type: ExternalName, clusterIP: 10.96.0.1, ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, externalName: "a b"}`, both, []string{
			`spec.clusterIPs: may not be set for ExternalName services`,
			`spec.ipFamilies: may not be set for ExternalName services`,
			`spec.ipFamilyPolicy: may not be set for ExternalName services`,
			`spec.externalName: "a b": must be a lowercase RFC 1123 subdomain: lower case letters, digits, '-' or '.', beginning and ending with a letter or digit`,
		}},
		{"no externalName", `type: ExternalName`, both, []string{`spec.externalName: is required`}},
		{"selector", `{selector: {"a b": "c d"}, ports: [{port: 80}]}`, both, []string{
			`spec.selector: "a b": must be a qualified name: an optional DNS subdomain and '/', then up to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit`,
			`spec.selector[a b]: "c d": must be empty or up to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit`,
		}},
		{"affinity", `{sessionAffinity: Cookie, ports: [{port: 80}]}`, both, []string{`spec.sessionAffinity: "Cookie": must be one of: ClientIP, None`}},
		{"affinity timeout 86400", `{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}, ports: [{port: 80}]}`, both, nil},
		{"affinity timeout 86401", `{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}, ports: [{port: 80}]}`, both, []string{
			`spec.sessionAffinityConfig.clientIP.timeoutSeconds: "86401": must be greater than 0 and at most 86400`,
		}},
		{"affinity timeout 0", `{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ports: [{port: 80}]}`, both, []string{
			`spec.sessionAffinityConfig.clientIP.timeoutSeconds: "0": must be greater than 0 and at most 86400`,
		}},
		{"clusterIP no address", `{clusterIP: 10.96.0.011, ports: [{port: 80}]}`, both, []string{
			`spec.clusterIPs[0]: "10.96.0.011": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`,
		}},
		{"clusterIPs without clusterIP", `{clusterIPs: [10.96.0.1], ports: [{port: 80}]}`, both, []string{
			"spec.clusterIPs[0]: \"10.96.0.1\": must be empty when `clusterIP` is not specified",
		}},
		{"clusterIPs differ", `{clusterIP: 10.96.0.2, clusterIPs: [10.96.0.1], ports: [{port: 80}]}`, both, []string{
			"spec.clusterIPs: \"10.96.0.1\": first value must match `clusterIP`",
		}},
		{"None and more", `{clusterIP: None, clusterIPs: [None, 10.96.0.1], ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}`, both, []string{
			`spec.clusterIPs: "None,10.96.0.1": 'None' must be the first and only value`,
		}},
		{"one family twice", `{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 10.96.0.2], ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6], ports: [{port: 80}]}`, both, []string{
			`spec.clusterIPs: "10.96.0.1,10.96.0.2": may specify no more than one IP for each IP family`,
		}},
		{"family of the address", `{clusterIP: 10.96.0.1, ipFamilies: [IPv6], ports: [{port: 80}]}`, both, []string{
			"spec.clusterIPs[0]: \"10.96.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
		}},
		{"two families, one stack", `{ipFamilies: [IPv4, IPv6], ports: [{port: 80}]}`, both, []string{
			`spec.ipFamilyPolicy: "SingleStack": must be RequireDualStack or PreferDualStack when multiple IP families are specified`,
		}},
		{"two addresses, one stack", `{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, "fd00:10:96::1"], ports: [{port: 80}]}`, both, []string{
			`spec.ipFamilyPolicy: "SingleStack": must be RequireDualStack or PreferDualStack when multiple cluster IPs are specified`,
		}},
		{"dual stack not here", `{ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}`, only4, []string{
			`spec.ipFamilyPolicy: "RequireDualStack": this cluster is not configured for dual-stack services`,
		}},
		{"dual stack preferred", `{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}`, only4, nil},
		{"family not here", `{ipFamilies: [IPv6], ports: [{port: 80}]}`, only4, []string{`spec.ipFamilies[0]: "IPv6": not configured on this cluster`}},
		{"family not here, nobody's", `{clusterIP: None, ports: [{port: 80}]}`, only4, nil},
		{"families", `{ipFamilies: [IPv5, IPv4, IPv4], ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}`, both, []string{
			`spec.ipFamilies[0]: "IPv5": must be one of: IPv4, IPv6`,
			`spec.ipFamilies[2]: "IPv4": is a duplicate`,
			`spec.ipFamilies: "IPv5,IPv4,IPv4": may only hold up to 2 values`,
		}},
		{"external IPs", `{externalIPs: [0.0.0.0, 127.0.0.1, 169.254.1.1, 224.0.0.1, "::ffff:10.0.0.1", x, 203.0.113.250], ports: [{port: 80}]}`, both, []string{
			`spec.externalIPs[0]: "0.0.0.0": may not be unspecified`,
			`spec.externalIPs[1]: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`,
			`spec.externalIPs[2]: "169.254.1.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)`,
			`spec.externalIPs[3]: "224.0.0.1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)`,
			`spec.externalIPs[4]: "::ffff:10.0.0.1": must not be an IPv4-mapped IPv6 address`,
			`spec.externalIPs[5]: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`,
		}},
		{"balancer fields elsewhere", `{loadBalancerSourceRanges: [10.0.0.0/8], allocateLoadBalancerNodePorts: true, loadBalancerClass: a/b, ports: [{port: 80}]}`, both, []string{
			"spec.loadBalancerSourceRanges: may only be used when `type` is 'LoadBalancer'",
			"spec.allocateLoadBalancerNodePorts: \"true\": may only be used when `type` is 'LoadBalancer'",
			"spec.loadBalancerClass: \"a/b\": may only be used when `type` is 'LoadBalancer'",
		}},
		{"balancer fields", `{type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.1], loadBalancerClass: " ", loadBalancerIP: x, ports: [{port: 80}]}`, both, []string{
			`spec.loadBalancerSourceRanges[0]: "10.0.0.1": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`,
			`spec.loadBalancerClass: " ": must be a qualified name: an optional DNS subdomain and '/', then up to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit`,
		}},
		{"balancer address", `{type: LoadBalancer, loadBalancerIP: "2001:db8::1", ports: [{port: 80}]}`, both, []string{
			`spec.loadBalancerIP: "2001:db8::1": must be of one of the Service's ipFamilies`,
		}},
		{"external policy inside", `{externalTrafficPolicy: Local, ports: [{port: 80}]}`, both, []string{
			`spec.externalTrafficPolicy: "Local": may only be set for externally-accessible services`,
		}},
		{"external policy with external IPs", `{externalTrafficPolicy: Local, externalIPs: [203.0.113.250], ports: [{port: 80}]}`, both, nil},
		{"policies", `{type: NodePort, externalTrafficPolicy: X, internalTrafficPolicy: W, trafficDistribution: Z, ports: [{port: 80}]}`, both, []string{
			`spec.externalTrafficPolicy: "X": must be one of: Cluster, Local`,
			`spec.internalTrafficPolicy: "W": must be one of: Cluster, Local`,
			`spec.trafficDistribution: "Z": must be one of: PreferClose, PreferSameNode, PreferSameZone`,
		}},
		{"health check port", `{type: NodePort, externalTrafficPolicy: Local, healthCheckNodePort: 30000, ports: [{port: 80}]}`, both, []string{
			"spec.healthCheckNodePort: \"30000\": may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
		}},
		{"health check port taken", `{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30000, ports: [{port: 80, nodePort: 30000}]}`, both, []string{
			`spec.healthCheckNodePort: "30000": must not be the node port of a port`,
		}},
		{"app protocol", `ports: [{port: 80, appProtocol: "a b"}]`, both, []string{
			`spec.ports[0].appProtocol: "a b": must be a qualified name: an optional DNS subdomain and '/', then up to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) { check(t, complete(spec(t, c.spec), nil, c.have), c.want) })
	}
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct{ name, spec, want string }{
		{"smallest", `ports: [{port: 80}]`, `
type: ClusterIP
sessionAffinity: None
internalTrafficPolicy: Cluster
ipFamilies: [IPv4]
ipFamilyPolicy: SingleStack
ports: [{port: 80, protocol: TCP, targetPort: 80}]`},
		{"load balancer", `{type: LoadBalancer, sessionAffinity: ClientIP, ipFamilies: [IPv6], ipFamilyPolicy: PreferDualStack, ports: [{port: 80, targetPort: http}]}`, `
type: LoadBalancer
sessionAffinity: ClientIP
sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
internalTrafficPolicy: Cluster
externalTrafficPolicy: Cluster
allocateLoadBalancerNodePorts: true
ipFamilies: [IPv6, IPv4]
ipFamilyPolicy: PreferDualStack
ports: [{port: 80, protocol: TCP, targetPort: http}]`},
		{"ExternalName", `{type: ExternalName, externalName: example.com}`, `
type: ExternalName
externalName: example.com
sessionAffinity: None`},
		{"headless without selector", `clusterIP: None`, `
type: ClusterIP
sessionAffinity: None
internalTrafficPolicy: Cluster
clusterIP: None
clusterIPs: [None]
ipFamilies: [IPv4, IPv6]
ipFamilyPolicy: RequireDualStack`},
		{"headless with selector", `{clusterIP: None, selector: {a: b}}`, `
type: ClusterIP
sessionAffinity: None
internalTrafficPolicy: Cluster
selector: {a: b}
clusterIP: None
clusterIPs: [None]
ipFamilies: [IPv4]
ipFamilyPolicy: SingleStack`},
		{"family of the address", `{clusterIP: "fd00:10:96::1", ports: [{port: 80}]}`, `
type: ClusterIP
sessionAffinity: None
internalTrafficPolicy: Cluster
clusterIP: "fd00:10:96::1"
clusterIPs: ["fd00:10:96::1"]
ipFamilies: [IPv6]
ipFamilyPolicy: SingleStack
ports: [{port: 80, protocol: TCP, targetPort: 80}]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, want := spec(t, c.spec), spec(t, c.want)
			check(t, complete(got, nil, both), nil)
			if !proto.Equal(got.Spec, want.Spec) {
				t.Errorf("got  %v\nwant %v", got.Spec, want.Spec)
			}
			again := proto.Clone(got).(*objectv1.Service)
			check(t, complete(again, got, both), nil)
			if !proto.Equal(got, again) {
				t.Errorf("a second time: %v", again)
			}
		})
	}
}

// TestUpdate applies one spec over another that is stored with its values.
func TestUpdate(t *testing.T) {
	for _, c := range []struct {
		name, old, spec string
		want            []string
		// stored is what the spec becomes, as far as it is of interest.
		stored string
	}{
		{"left out", `{clusterIP: 10.96.0.5, ports: [{port: 80}]}`, `ports: [{port: 81}]`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5]}`},
		{"another address", `{clusterIP: 10.96.0.5, ports: [{port: 80}]}`, `{clusterIP: 10.96.0.6, ports: [{port: 80}]}`,
			[]string{`spec.clusterIPs[0]: "10.96.0.6": may not change once set`}, ``},
		{"to headless", `{clusterIP: 10.96.0.5, ports: [{port: 80}]}`, `{clusterIP: None, ports: [{port: 80}]}`,
			[]string{`spec.clusterIPs[0]: "None": may not change once set`}, ``},
		{"to ExternalName", `{clusterIP: 10.96.0.5, ports: [{port: 80}]}`, `{type: ExternalName, externalName: example.com, ports: [{port: 80}]}`, nil, `{}`},
		{"to ExternalName, as read", `{clusterIP: 10.96.0.5, ports: [{port: 80}]}`,
			`{type: ExternalName, externalName: example.com, clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, internalTrafficPolicy: Cluster, ports: [{port: 80}]}`, nil, `{}`},
		{"from ExternalName", `{type: ExternalName, externalName: example.com}`, `ports: [{port: 80}]`, nil, `{}`},
		{"node port kept", `{type: NodePort, clusterIP: 10.96.0.5, ports: [{name: a, port: 80, nodePort: 30001}]}`,
			`{type: LoadBalancer, ports: [{name: b, port: 81}, {name: a, port: 82}]}`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{nodePort: 0}, {nodePort: 30001}]}`},
		{"node port given to another", `{type: NodePort, clusterIP: 10.96.0.5, ports: [{name: a, port: 80, nodePort: 30001}, {name: b, port: 81, nodePort: 30002}]}`,
			`{type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81, nodePort: 30001}]}`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{nodePort: 0}, {nodePort: 30001}]}`},
		{"node port of two protocols kept", `{type: NodePort, clusterIP: 10.96.0.5, ports: [{name: a, port: 53, nodePort: 30053}, {name: b, port: 53, protocol: UDP, nodePort: 30053}]}`,
			`{type: NodePort, ports: [{name: a, port: 53}, {name: b, port: 53, protocol: UDP}]}`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{nodePort: 30053}, {nodePort: 30053}]}`},
		{"node port dropped", `{type: NodePort, clusterIP: 10.96.0.5, ports: [{port: 80, nodePort: 30001}]}`,
			`{type: ClusterIP, ports: [{port: 80, nodePort: 30001}]}`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{nodePort: 0}]}`},
		{"node port changed and not wanted", `{type: NodePort, clusterIP: 10.96.0.5, ports: [{port: 80, nodePort: 30001}]}`,
			`{type: ClusterIP, ports: [{port: 80, nodePort: 30002}]}`,
			[]string{"spec.ports[0].nodePort: \"30002\": may not be used when `type` is 'ClusterIP'"}, ``},
		{"LoadBalancer to ClusterIP, as read", `{type: LoadBalancer, clusterIP: 10.96.0.5, externalTrafficPolicy: Local, healthCheckNodePort: 30009, loadBalancerClass: a/b, ports: [{port: 80, nodePort: 30001}]}`,
			`{type: ClusterIP, clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], externalTrafficPolicy: Local, healthCheckNodePort: 30009, loadBalancerClass: a/b, allocateLoadBalancerNodePorts: true, ports: [{port: 80, nodePort: 30001}]}`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{nodePort: 0}]}`},
		{"health check port kept", `{type: LoadBalancer, clusterIP: 10.96.0.5, externalTrafficPolicy: Local, healthCheckNodePort: 30009, ports: [{port: 80, nodePort: 30001}]}`,
			`{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]}`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], healthCheckNodePort: 30009, ports: [{nodePort: 30001}]}`},
		{"Local to Cluster", `{type: LoadBalancer, clusterIP: 10.96.0.5, externalTrafficPolicy: Local, healthCheckNodePort: 30009, ports: [{port: 80, nodePort: 30001}]}`,
			`{type: LoadBalancer, healthCheckNodePort: 30009, ports: [{port: 80}]}`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{nodePort: 30001}]}`},
		{"class", `{type: LoadBalancer, clusterIP: 10.96.0.5, loadBalancerClass: a/b, ports: [{port: 80}]}`, `{type: LoadBalancer, loadBalancerClass: a/c, ports: [{port: 80}]}`,
			[]string{`spec.loadBalancerClass: "a/c": may not change once set`}, ``},
		{"to two stacks", `{clusterIP: 10.96.0.5, ports: [{port: 80}]}`, `{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}`, nil,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5]}`},
		{"to one stack", `{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5, "fd00:10:96::5"], ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}`,
			`{ipFamilyPolicy: SingleStack, ports: [{port: 80}]}`, nil, `{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5]}`},
		{"second released without the policy", `{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5, "fd00:10:96::5"], ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}`,
			`{clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ipFamilies: [IPv4], ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}`,
			[]string{`spec.ipFamilyPolicy: "RequireDualStack": must be set to 'SingleStack' when releasing the secondary clusterIP`}, ``},
		{"another primary family", `{clusterIP: 10.96.0.5, ports: [{port: 80}]}`, `{ipFamilies: [IPv6], ports: [{port: 80}]}`,
			[]string{"spec.clusterIPs[0]: \"10.96.0.5\": expected an IPv6 value as indicated by `ipFamilies[0]`", `spec.ipFamilies[0]: "IPv6": may not change once set`}, ``},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := spec(t, c.old)
			check(t, complete(old, nil, both), nil)
			o := spec(t, c.spec)
			check(t, complete(o, old, both), c.want)
			if c.stored == "" {
				return
			}
			want := spec(t, c.stored).Spec
			got := &objectv1.ServiceSpec{ClusterIp: o.Spec.ClusterIp, ClusterIps: o.Spec.ClusterIps, HealthCheckNodePort: o.Spec.HealthCheckNodePort}
			if len(want.Ports) > 0 {
				for _, port := range o.Spec.Ports {
					got.Ports = append(got.Ports, &objectv1.ServicePort{NodePort: port.NodePort})
				}
			}
			if !proto.Equal(got, want) {
				t.Errorf("stored %v, want %v", got, want)
			}
		})
	}
}

func TestValidateSlice(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       []string
	}{
		{"smallest", `{addressType: IPv4, endpoints: [], ports: []}`, nil},
		{"whole", `{addressType: IPv6, ports: [{port: 80}, {name: a}], endpoints: [{addresses: ["2001:db8::1"], hostname: a, nodeName: n.b, zone: z, hints: {forZones: [{name: z}], forNodes: [{name: m}]}}]}`, nil},
		{"names", `{addressType: FQDN, endpoints: [{addresses: [www.example.com]}]}`, nil},
		{"no type", `{endpoints: []}`, []string{`addressType: is required: IPv4, IPv6 or FQDN`}},
		{"type", `{addressType: IP, endpoints: []}`, []string{`addressType: "IP": must be one of: FQDN, IPv4, IPv6`}},
		{"addresses", `{addressType: IPv4, endpoints: [{addresses: []}, {addresses: ["2001:db8::1", 127.0.0.1, 010.0.0.1]}]}`, []string{
			`endpoints[0].addresses: must contain at least 1 address`,
			`endpoints[1].addresses[0]: "2001:db8::1": must be a valid IPv4 address`,
			`endpoints[1].addresses[1]: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`,
			`endpoints[1].addresses[2]: "010.0.0.1": must be a valid IPv4 address`,
		}},
		{"one label", `{addressType: FQDN, endpoints: [{addresses: [www]}]}`, []string{
			`endpoints[0].addresses[0]: "www": should be a domain with at least two segments separated by dots`,
		}},
		{"ports", `{addressType: IPv4, endpoints: [], ports: [{port: 0}, {name: "", protocol: X}, {name: A_}]}`, []string{
			`ports[0].port: "0": must be between 1 and 65535, inclusive`,
			`ports[1].name: is a duplicate`,
			`ports[1].protocol: "X": must be one of: SCTP, TCP, UDP`,
			`ports[2].name: "A_": must be a lowercase RFC 1123 label: lower case letters, digits or '-', beginning and ending with a letter or digit`,
		}},
		{"hints", `{addressType: IPv4, endpoints: [{addresses: [192.0.2.1], hostname: A, hints: {forZones: [{name: z}, {name: z}]}}]}`, []string{
			`endpoints[0].hostname: "A": must be a lowercase RFC 1123 label: lower case letters, digits or '-', beginning and ending with a letter or digit`,
			`endpoints[0].hints.forZones[1].name: "z": is a duplicate`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := objects(t, "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: x}, "+c.body[1:])[0].(*objectv1.EndpointSlice)
			lb.DefaultSlice(o)
			check(t, lb.ValidateSlice(o, nil), c.want)
		})
	}
	old := &objectv1.EndpointSlice{AddressType: "IPv4"}
	check(t, lb.ValidateSlice(&objectv1.EndpointSlice{AddressType: "IPv6"}, old), []string{`addressType: "IPv6": field is immutable`})
	many := &objectv1.EndpointSlice{AddressType: "IPv4", Endpoints: make([]*objectv1.Endpoint, 1001)}
	check(t, lb.ValidateSlice(many, nil), []string{`endpoints: "1001": must have at most 1000 items`})
	many = &objectv1.EndpointSlice{AddressType: "IPv4", Ports: make([]*objectv1.EndpointPort, 101)}
	check(t, lb.ValidateSlice(many, nil), []string{`ports: "101": must have at most 100 items`})
}
