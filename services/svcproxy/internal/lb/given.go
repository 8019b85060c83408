package lb

import (
	"net/netip"

	"google.golang.org/protobuf/types/known/structpb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// APIRef names the Service of the cluster's API.
func APIRef() Ref { return Ref{"default", "kubernetes"} }

// DNSRef names the Service of cluster DNS.
func DNSRef() Ref { return Ref{"kube-system", "kube-dns"} }

// IngressRef names the Service of the ingress.
func IngressRef() Ref { return Ref{"kube-system", "podwire-ingress"} }

// ingressLabels are those of the ingress' Pods, which are fabric members.
func ingressLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "podwire-ingress"}
}

// IngressService is kube-system/podwire-ingress: the way in for HTTP, in every family that the cluster has.
func IngressService() *objectv1.Service {
	return &objectv1.Service{
		ApiVersion: "v1", Kind: "Service",
		Metadata: &objectv1.ObjectMeta{Namespace: IngressRef().Namespace, Name: IngressRef().Name, Labels: ingressLabels()},
		Spec: &objectv1.ServiceSpec{
			Type: ptr("LoadBalancer"), Selector: ingressLabels(), IpFamilyPolicy: ptr(preferDualStack),
			Ports: []*objectv1.ServicePort{
				{Name: "http", Protocol: ptr("TCP"), Port: 80, TargetPort: structpb.NewNumberValue(80)},
				{Name: "https", Protocol: ptr("TCP"), Port: 443, TargetPort: structpb.NewNumberValue(443)},
			},
		},
	}
}

// APIService is default/kubernetes: the cluster's API on the first address of the primary range. It has no selector,
// and no endpoints until something serves that API.
func APIService(first netip.Addr) *objectv1.Service {
	return &objectv1.Service{
		ApiVersion: "v1", Kind: "Service",
		Metadata: &objectv1.ObjectMeta{
			Namespace: APIRef().Namespace, Name: APIRef().Name,
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: &objectv1.ServiceSpec{
			ClusterIp: first.String(), ClusterIps: []string{first.String()},
			Ports: []*objectv1.ServicePort{{
				Name: "https", Protocol: ptr("TCP"), Port: 443, TargetPort: structpb.NewNumberValue(6443),
			}},
		},
	}
}

// DNSService is kube-system/kube-dns: cluster DNS on its well-known addresses, one of each family, the primary first.
func DNSService(addresses []netip.Addr) *objectv1.Service {
	spec := &objectv1.ServiceSpec{
		Selector: map[string]string{"k8s-app": "kube-dns"}, IpFamilyPolicy: ptr(singleStack),
		Ports: []*objectv1.ServicePort{
			{Name: "dns", Protocol: ptr("UDP"), Port: 53, TargetPort: structpb.NewNumberValue(53)},
			{Name: "dns-tcp", Protocol: ptr("TCP"), Port: 53, TargetPort: structpb.NewNumberValue(53)},
		},
	}
	for _, a := range addresses {
		spec.ClusterIps = append(spec.ClusterIps, a.String())
		spec.IpFamilies = append(spec.IpFamilies, string(FamilyOf(a)))
	}
	if len(addresses) > 0 {
		spec.ClusterIp = addresses[0].String()
	}
	if len(addresses) > 1 {
		spec.IpFamilyPolicy = ptr(preferDualStack)
	}
	return &objectv1.Service{
		ApiVersion: "v1", Kind: "Service",
		Metadata: &objectv1.ObjectMeta{
			Namespace: DNSRef().Namespace, Name: DNSRef().Name,
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true"},
		},
		Spec: spec,
	}
}
